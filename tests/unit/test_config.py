"""The pipeline file: the shipped one is right, and a wrong one names file, line, field and what is allowed."""

from pathlib import Path

import pytest

from leadsync.config import Pipeline, load_pipeline, load_pipelines
from leadsync.errors import ConfigError

SHIPPED = Path(__file__).parents[2] / "include" / "pipelines"
GOOD = (SHIPPED / "leads.yaml").read_text(encoding="utf-8")


def read(tmp_path: Path, text: str, name: str = "leads.yaml") -> Pipeline:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return load_pipeline(path)


def test_the_shipped_pipeline_is_right() -> None:
    (leads,) = load_pipelines(SHIPPED)
    assert leads.name == "leads"
    assert [(d.name, d.conn_id) for d in leads.destinations] == [
        ("hubspot", "crm_hubspot"),
        ("salesforce", "crm_salesforce"),
    ]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "phone: phone",
            "phone: telephone",
            r"leads.yaml:\d+: .*fields.phone: no column 'telephone'; allowed: .*",
        ),
        ("table: customer", "table: 'customer; drop'", r"leads.yaml:4: source.table: String should match"),
        ("watermark: update_time", "watermark: changed", r"`watermark` names the column 'changed'"),
        (
            "  watermark_kind: timestamptz",
            "  watermark_kind: date",
            r"watermark_kind: Input should be 'timestamptz'",
        ),
        (
            "transform: trim}",
            "transform: reverse}",
            r"hubspot.fields.firstname.transform.0: Input should be 'trim'",
        ),
        (
            "on_delete: archive",
            "on_delete: shred",
            r"destinations.hubspot.on_delete.mode: Input should be 'delete'",
        ),
        (
            "{constant: Web}",
            "{}",
            r"salesforce.fields.LeadSource: needs exactly one of `column` and `constant`",
        ),
        (
            "deleted: is_delete",
            "deletd: is_delete",
            r"leads.yaml:8: source.deletd: Extra inputs are not permitted",
        ),
        ("source:", "source: [", r"leads.yaml: not valid YAML"),
        (
            "    on_delete: archive",
            "    on_delete: archive\n    crm_owned: [phone, fax]",
            r"destinations.hubspot: `crm_owned` names 'fax', which is no field; fields: email, firstname",
        ),
        ('cron: "* * * * *"', "cron: hourly", "schedule.cron: 'hourly' is no cron expression"),
        ("schedule:", "reconcile:\n  cron: nightly\nschedule:", r"reconcile.cron: 'nightly' is no cron expression"),
        ("schedule:", "alerts:\n  quota_left: 90\nschedule:", r"alerts.quota_left: Input should be less than or equal"),
        ("schedule:", "alerts:\n  dead_letters: 0\nschedule:", r"alerts.dead_letters: Input should be greater than"),
        ("schedule:", "alerts:\n  parked: null\nschedule:", r"alerts.parked: Input should be a valid boolean"),
        ("schedule:", "alerts:\n  parkd: true\nschedule:", r"leads.yaml:\d+: alerts.parkd: Extra inputs"),
        (
            "schedule:",
            "reconcile:\n  sample: 2\nschedule:",
            r"reconcile.sample: Input should be less than or equal to 1",
        ),
    ],
)
def test_a_wrong_file_says_where_and_what(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert old in GOOD
    with pytest.raises(ConfigError, match=expected):
        read(tmp_path, GOOD.replace(old, new, 1))


def test_every_mistake_is_reported_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("deleted: is_delete", "deletd: is_delete").replace("on_delete: archive", "on_delete: shred")
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert len(str(caught.value).splitlines()) == 2


def test_a_constant_may_be_null_and_a_route_may_be_one_value(tmp_path: Path) -> None:
    text = GOOD.replace("{constant: Web}", "{constant: null}").replace(
        "    on_delete: delete\n",
        "    on_delete: {mode: field, field: Gone__c, value: true}\n    route: {appkey: A}\n",
    )
    salesforce = read(tmp_path, text).destinations[1]
    assert salesforce.fields["LeadSource"].constant is None
    assert salesforce.route == {"appkey": ("A",)}


def test_lag_and_lookback_belong_to_the_lag_bound(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`lag` and `lookback` belong to `bound: lag`"):
        read(tmp_path, GOOD.replace("  table: customer", "  table: customer\n  lag: 5"))
    text = GOOD.replace("  table: customer", "  table: customer\n  bound: lag\n  lag: 5\n  lookback: 60")
    assert read(tmp_path, text).source.lookback == 60


def test_retention_is_in_days_and_fits_the_snapshots(tmp_path: Path) -> None:
    keep = read(tmp_path, GOOD).retention
    assert (keep.operation_log_days, keep.dead_letter_days, keep.recovery_log_days) == (90, 90, 365)
    assert read(tmp_path, GOOD).snapshot_keep_hours == 72
    assert read(tmp_path, GOOD + "\nsnapshot_ttl_hours: 24\n").snapshot_keep_hours == 24
    text = GOOD + "\nretention: {snapshot_keep_hours: 100, operation_log_days: 7}\n"
    assert read(tmp_path, text).snapshot_keep_hours == 100
    with pytest.raises(ConfigError, match="`retention.snapshot_keep_hours` is above `snapshot_ttl_hours`, which is 24"):
        read(tmp_path, text + "snapshot_ttl_hours: 24\n")
    with pytest.raises(ConfigError, match="`retention.operation_log_days` is below .*, so at least 10 days"):
        read(tmp_path, text + "snapshot_ttl_hours: 240\n")
    for wrong in ("recovery_log_days: 0", "dead_letter_days: .inf", "operation_log_days: .nan", "dead_letters: 9"):
        name = wrong.split(":")[0]
        with pytest.raises(ConfigError, match=rf"leads.yaml:\d+: retention.{name}: "):
            read(tmp_path, GOOD + f"\nretention:\n  {wrong}\n")


def test_a_pipeline_is_reconciled_every_night_unless_it_says_otherwise(tmp_path: Path) -> None:
    plain = read(tmp_path, GOOD).reconcile
    assert (plain.cron, plain.sample, plain.recent_days, plain.repair) == ("17 3 * * *", 0.05, 2, False)
    text = "reconcile: {cron: null, sample: 1, repair: true}\n" + GOOD.replace(
        "    on_delete: archive", "    on_delete: archive\n    crm_owned: [city]"
    )
    changed = read(tmp_path, text)
    assert (changed.reconcile.cron, changed.reconcile.sample, changed.reconcile.repair) == (None, 1, True)
    assert changed.destinations[0].crm_owned == ("city",)


def test_the_files_name_is_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the file's name is the pipeline's"):
        read(tmp_path, GOOD, "My Leads.yaml")


def test_each_alert_has_a_limit_and_can_be_switched_off(tmp_path: Path) -> None:
    alerts = read(tmp_path, GOOD).alerts
    assert (alerts.behind_minutes, alerts.dead_letters, alerts.quota_left, alerts.redis_memory) == (15, 10, 0.1, 0.8)
    off = ["behind_minutes", "dead_letters", "quota_left", "held_back_minutes", "redis_memory"]
    text = "\n".join(f"  {name}: null" for name in off)
    switches = "\n".join(f"  {name}: false" for name in ("parked", "unreachable", "redis_unsafe"))
    alerts = read(tmp_path, f"{GOOD}\nalerts:\n{text}\n{switches}\n").alerts
    assert {value for name, value in alerts if name != "calm_minutes"} == {None, False}
