"""Run by BottleCRM's own Python on an empty database: its tables, an organisation, members with tokens, and fields.

The tables are made from the models at once: the 223 migrations take minutes. They leave the same tables, but for
the width of the ids of five join tables that no lead touches, and no rows; their policies are made by BottleCRM's own
function. Arguments: the tokens of an administrator, of a member who sees only leads of their own, and of an
administrator that may do no more than read.
"""

import sys

import django
from django.conf import settings
from django.core.management import call_command
from django.db import connection

FIELDS = {
    "leadsync_id": "text",
    "leadsync_appkey": "text",
    "leadsync_uid": "number",
    "leadsync_answers": "textarea",
    "leadsync_updated_at": "text",
    "leadsync_born": "date",
    "leadsync_wants_news": "checkbox",
    "leadsync_source": "dropdown",
    "leadsync_retired": "text",
}


READING = ["leads:read", "custom-fields:read", "profile:read"]


def main(administrator: str, member: str, reader: str) -> None:
    settings.MIGRATION_MODULES = {app.rpartition(".")[2]: None for app in settings.INSTALLED_APPS}
    django.setup()
    from common.models import CustomFieldDefinition, Org, PersonalAccessToken, Profile, User
    from common.rls import RLS_CONFIG, get_enable_policy_sql, get_set_context_sql

    call_command("migrate", run_syncdb=True, verbosity=0)
    org = Org.objects.create(name="Leadsync")
    with connection.cursor() as cursor:
        for table in RLS_CONFIG["tables"]:
            cursor.execute(get_enable_policy_sql(table))
        cursor.execute(get_set_context_sql(), [str(org.id)])
    for role, tokens in (("ADMIN", {administrator: [], reader: READING}), ("USER", {member: []})):
        user = User.objects.create(email=f"{role.lower()}@example.org")
        profile = Profile.objects.create(user=user, org=org, role=role)
        for token, scopes in tokens.items():
            token_hash = PersonalAccessToken.hash_token(token)
            PersonalAccessToken.objects.create(
                org=org, profile=profile, name="Leadsync", token_hash=token_hash, scopes=scopes
            )
    for key, kind in FIELDS.items():
        options = [{"value": each, "label": each} for each in ("fair", "web")] if kind == "dropdown" else None
        CustomFieldDefinition.objects.create(
            org=org, target_model="Lead", key=key, label=key, field_type=kind, options=options,
            is_active=key != "leadsync_retired",
        )  # fmt: skip


main(*sys.argv[1:])
