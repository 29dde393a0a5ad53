"""Run by Tryton's own Python: makes the user that Leadsync logs in as; it is in no group.

Arguments: the configuration file, login and password.
"""

import sys

from trytond import config

config.update_etc(sys.argv[1])

from trytond.pool import Pool  # noqa: E402 - it reads the configuration when it is imported
from trytond.transaction import Transaction  # noqa: E402

Pool.start()
pool = Pool("crm")
with Transaction().start("crm", 0):
    pool.init()
with Transaction().start("crm", 1):
    login, password = sys.argv[2:]
    pool.get("res.user").create([{"name": "Leadsync", "login": login, "password": password}])
