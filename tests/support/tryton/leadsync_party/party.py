"""Fields of a lead. `leadsync_id` is for those who keep `code` for numbers of their own."""

from trytond.model import Unique, fields
from trytond.pool import PoolMeta


class Party(metaclass=PoolMeta):
    __name__ = "party.party"

    leadsync_id = fields.Char("Lead", help="APPKEY:uid of the lead in the lead store.")
    leadsync_uid = fields.Integer("Visitor")
    leadsync_answers = fields.Text("Answers", strip=False)
    leadsync_updated_at = fields.Timestamp("Changed at")
    leadsync_born = fields.Date("Born")
    leadsync_revenue = fields.Numeric("Revenue", digits=(16, 2))
    leadsync_wants_news = fields.Boolean("Wants news")
    leadsync_source = fields.Selection([(None, ""), ("landing_page", "Landing page"), ("fair", "Fair")], "Source")

    @classmethod
    def __setup__(cls):
        super().__setup__()
        table = cls.__table__()
        cls._sql_constraints.append(
            ("leadsync_id_unique", Unique(table, table.leadsync_id), "leadsync_party.msg_leadsync_id_unique")
        )
