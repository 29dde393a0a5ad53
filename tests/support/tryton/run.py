"""Run by Tryton's own Python: one of its programs, with a password hash that costs little.

A login costs a quarter of a second of the processor otherwise, and every test logs in. Arguments: the module of the
program, then the program's own.
"""

import sys
from functools import partial
from importlib import import_module

from pwdlib.hashers import argon2

argon2.Argon2Hasher = partial(argon2.Argon2Hasher, time_cost=1, memory_cost=8, parallelism=1)
program = import_module(sys.argv.pop(1))
sys.exit(program.main())
