"""The Leadsync page in Airflow's own, in a real browser: Debian's chromium (apt-get install chromium), or else
Playwright's (.venv/bin/playwright install chromium).

With LEADSYNC_SCREENSHOTS=<folder> (make screenshots) every view is kept as a picture.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import psycopg
import pytest
import requests
from playwright.sync_api import Frame, expect, sync_playwright

from tests.e2e.browser import Person, chromium
from tests.e2e.conftest import Airflow

VIEWS = ["overview", "operations", "letters", "lead", "recovery"]
MARKUP = "<img src=x onerror=\"document.body.dataset.pwned='yes'\"><script>document.body.dataset.pwned='yes'</script>"
Open = Callable[..., Person]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_playwright() as playwright, chromium(playwright) as browser:
        yield browser


@pytest.fixture
def person(browser: Any, airflow: Airflow) -> Iterator[Open]:
    people: list[Person] = []

    def come(name: str = "admin", **context: Any) -> Person:
        people.append(Person(browser, airflow, name, **context))
        return people[-1]

    yield come
    for each in people:
        each.close()


@pytest.fixture(scope="module")
def letters(airflow: Airflow) -> Iterator[Airflow]:
    """Leads of the application PAGE, some of which HubSpot has refused; it is well again."""
    airflow.hive.execute(
        "INSERT INTO customer (appkey, uid, name, email, phone) SELECT 'PAGE', n, 'Lead ' || n, "
        "'page' || n || '@example.com', '13900' || lpad(n::text, 6, '0') FROM generate_series(1, 20) n"
    )
    airflow.simulators["hubspot"].faults(reject={"external_ids": [f"PAGE:{number}" for number in range(1, 9)]})
    airflow.run()
    airflow.simulators["hubspot"].faults()
    yield airflow
    # Whatever became of them here, they are delivered: other tests want the CRMs in step.
    airflow.hive.execute("UPDATE customer SET city = 'Köln' WHERE appkey = 'PAGE'")
    airflow.run()
    airflow.assert_in_step()


def in_letters(someone: Person) -> Frame:
    """HubSpot's group of refused leads."""
    frame = someone.open("letters")
    frame.get_by_role("link", name="rejected INVALID_VALUE").first.click()
    frame.locator("section.letter").first.wait_for()
    return frame


def letter(frame: Frame, external_id: str) -> Any:
    return frame.locator("section.letter", has=frame.get_by_role("link", name=external_id, exact=True))


def test_nobody_gets_anything_without_logging_in(airflow: Airflow) -> None:
    for path in ("", "main.js", "api/overview", "api/operations", "api/dead-letters/groups", "api/recovery-log"):
        assert requests.get(f"{airflow.stack.ui_url}/leadsync/{path}", timeout=30).status_code == 401, path
    headers = {"X-Leadsync": "1", "Sec-Fetch-Site": "same-origin"}
    reply = requests.post(f"{airflow.stack.ui_url}/leadsync/api/leads/search", json={"query": "x"}, headers=headers,
                          timeout=30)  # fmt: skip
    assert reply.status_code == 401


def test_a_person_finds_the_page_in_airflows_navigation(letters: Airflow, person: Open) -> None:
    someone = person()
    someone.page.get_by_role("link", name="Leadsync").click()
    frame = someone.frame()
    expect(frame.get_by_role("heading", name="hubspot")).to_be_visible()
    expect(frame.locator("article.card")).to_have_count(2)
    expect(frame.locator("article", has_text="hubspot").first).to_contain_text(re.compile("Dead letters ?8"))
    expect(frame.locator(".facts")).to_contain_text("customer · reachable")
    expect(frame.locator(".facts")).to_contain_text("noeviction")
    card = frame.locator("article", has_text="hubspot").first
    expect(card).to_contain_text(re.compile(r"CRM load, last 15 min.*p50 [\d,]+ ms · p95 [\d,]+ ms"))
    expect(card).to_contain_text(re.compile(r"Freshness, last 15 min.*p50 .*p95 .*p99"))
    expect(card).to_contain_text(re.compile(r"Quota left, as the CRM tells.* of 1,000,000"))


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [1600, 400])
def test_every_view_for_everybody(letters: Airflow, person: Open, width: int, dark: bool) -> None:
    someone = person(viewport={"width": width, "height": 1000}, color_scheme="dark" if dark else "light")
    someone.page.evaluate("theme => localStorage.setItem('theme', theme)", "dark" if dark else "light")
    inside = "letters?pipeline=leads&destination=hubspot"
    for view in [*VIEWS, inside, "lead?pipeline=leads&external_id=PAGE%3A1"]:
        frame = someone.open(view)
        expect(frame.locator("html")).to_have_attribute("data-theme", "dark" if dark else "light")
        frame.wait_for_function("() => !document.querySelector('main').textContent.includes('…')")
        wide = frame.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, f"{view} is {wide} px too wide"
        assert someone.violations(frame) == [], view
        name = {inside: "dead-letters", "letters": "groups"}.get(view, view.partition("?")[0])
        if dark == (width < 1000):  # one of each is enough to look at
            someone.screenshot(f"{name}-{width}-{'dark' if dark else 'light'}")


def test_the_language_is_airflows_unless_a_person_chooses(letters: Airflow, person: Open) -> None:
    someone = person()
    someone.page.evaluate("localStorage.setItem('i18nextLng', 'zh-CN')")
    frame = someone.open("overview")
    expect(frame.locator("nav a").first).to_have_text("概览")
    expect(frame.locator("html")).to_have_attribute("lang", "zh-CN")
    expect(frame.locator("article.card")).to_have_count(2)
    someone.screenshot("overview-chinese")
    frame.get_by_role("button", name="English").click()
    expect(frame.locator("nav a").first).to_have_text("Overview")
    frame = someone.open("recovery")
    expect(frame.locator("main h2")).to_have_text("Recovery log")


def test_a_dead_letter_is_replayed_and_resolved(letters: Airflow, person: Open) -> None:
    someone = person()
    frame = in_letters(someone)
    letter(frame, "PAGE:8").get_by_role("checkbox").check()
    frame.get_by_role("button", name="Replay selected").click()
    frame.get_by_role("dialog").get_by_role("button", name="Replay").click()
    replays = frame.get_by_role("list", name="Replays")
    expect(replays).to_contain_text("success", timeout=180_000)
    expect(letter(frame, "PAGE:8")).to_have_count(0)
    frame.get_by_role("button", name="resolved").click()
    expect(letter(frame, "PAGE:8").first).to_contain_text("delivered by a later operation (replay)")
    assert "PAGE:8" in letters.simulators["hubspot"].records()
    # The run is Airflow's own, with the person's name.
    run = letters.stack.api("GET", "/dags/leadsync_replay/dagRuns?order_by=-run_after&limit=1").json()["dag_runs"][0]
    assert run["triggering_user_name"] == "admin"
    assert run["conf"]["external_ids"] == ["PAGE:8"]
    replays.get_by_role("link", name="Airflow run").click()
    someone.page.wait_for_url("**/dags/leadsync_replay/runs/**")


def test_a_dead_letter_is_ignored_by_keyboard_only(letters: Airflow, person: Open) -> None:
    someone = person()
    frame = in_letters(someone)
    box = letter(frame, "PAGE:7").get_by_role("checkbox")
    frame.locator("main").focus()
    reach(someone, box)
    someone.page.keyboard.press("Space")
    expect(box).to_be_checked()
    someone.page.keyboard.press("Shift+Tab")
    reach(someone, frame.get_by_role("button", name="Ignore selected"), back=True)
    someone.page.keyboard.press("Enter")
    someone.page.keyboard.type("a test lead")
    reach(someone, frame.get_by_role("dialog").get_by_role("button", name="Ignore"))
    someone.page.keyboard.press("Enter")
    expect(letter(frame, "PAGE:7")).to_have_count(0)
    assert logged(letters, "ignored")[-1] == ("admin ignored 1 dead letters: a test lead", "admin")


def reach(someone: Person, wanted: Any, *, back: bool = False) -> None:
    """Goes from one element to the next with the Tab key."""
    for _ in range(80):
        if wanted.evaluate("element => element === document.activeElement"):
            return
        someone.page.keyboard.press("Shift+Tab" if back else "Tab")
    raise AssertionError("the keyboard does not lead there")


def logged(airflow: Airflow, kind: str) -> list[tuple[str, str]]:
    """Lines of the recovery log: message and by whom."""
    query = "SELECT message, details ->> 'by' FROM leadsync.recovery_log WHERE kind = %s ORDER BY id"
    with psycopg.connect(airflow.stack.leadsync_dsn) as connection:
        return connection.execute(query, (kind,)).fetchall()


def test_values_are_shown_on_request_and_that_is_logged(letters: Airflow, person: Open) -> None:
    frame = in_letters(person())
    mine = letter(frame, "PAGE:6")
    mine.locator("summary").click()
    expect(mine).to_contain_text("•••")
    expect(mine).not_to_contain_text("page6@example.com")
    mine.get_by_role("button", name="Show the values").click()
    expect(mine).to_contain_text("page6@example.com")
    assert ("admin looked at the payload of the dead letter of PAGE:6", "admin") in logged(letters, "revealed")


def test_a_lead_is_found_by_its_phone_number(letters: Airflow, person: Open) -> None:
    someone = person()
    frame = someone.open("lead")
    asked: list[str] = []
    someone.page.on("request", lambda request: asked.append(request.url))
    frame.get_by_role("textbox").fill("13900000012")
    frame.get_by_role("button", name="Search").click()
    expect(frame.locator("h3.lead")).to_contain_text("PAGE:12")
    expect(frame.locator(".timeline li")).to_have_count(2)
    expect(frame.locator(".timeline")).to_contain_text("created")
    assert not [url for url in [*asked, frame.url, someone.page.url] if "13900000012" in url]
    # From there to the record, which stands first in the CRM's page however many came later.
    link = frame.get_by_role("table", name="CRMs").locator("a.out").first
    crm_id, url = link.inner_text(), str(link.get_attribute("href"))
    assert url == f"{letters.stack.url('crm-hubspot')}/#{crm_id}"
    someone.page.goto(url)
    expect(someone.page.locator("tr[aria-current]")).to_contain_text("PAGE:12")
    expect(someone.page.locator("#records tr").first).to_contain_text(crm_id)


def test_a_line_is_acknowledged_with_a_note(letters: Airflow, person: Open) -> None:
    frame = person().open("recovery")
    frame.get_by_label("Kind").select_option("dead_letter")
    line = frame.locator("tbody tr").first
    expect(line).to_contain_text("became dead letters")
    line.get_by_role("button", name="Acknowledge").click()
    frame.get_by_role("dialog").get_by_role("textbox").fill("told HubSpot's admin")
    frame.get_by_role("dialog").get_by_role("button", name="Acknowledge").click()
    expect(line).to_contain_text("admin: told HubSpot's admin")


def test_what_was_sent_is_downloaded_as_json(letters: Airflow, person: Open) -> None:
    someone = person()
    frame = someone.open("operations")
    with someone.page.expect_download() as download:
        frame.get_by_role("button", name="What was sent to salesforce").first.click()
    text = download.value.path().read_text()
    assert '"destination":"salesforce"' in text


def test_a_viewer_sees_and_can_not_act(letters: Airflow, person: Open) -> None:
    someone = person("viewer")
    frame = in_letters(someone)
    assert frame.get_by_role("checkbox").count() == 0
    for name in ("Replay", "Ignore", "Show the values"):
        assert frame.get_by_role("button", name=name).count() == 0, name
    frame = someone.open("recovery")
    frame.locator("tbody tr").first.wait_for()
    assert frame.get_by_role("button", name="Acknowledge").count() == 0
    # Nor by asking the server itself, with the viewer's own login.
    answers = frame.evaluate(
        """async () => {
          const headers = {"X-Leadsync": "1", "Content-Type": "application/json"};
          const ask = async (path, body) =>
            (await fetch(path, {method: "POST", headers, body: JSON.stringify(body)})).status;
          const conf = {all: true};
          return [
            await ask("../api/v2/dags/leadsync_replay/dagRuns", {logical_date: null, conf}),
            await ask("api/dead-letters/1/reveal", {}),
            await ask("api/recovery-log/1/acknowledge", {note: "mine"}),
            await ask("api/dead-letters/ignore", {pipeline: "leads", destination: "hubspot", ids: [1],
                                                  seen: new Date().toISOString(), reason: "because"}),
          ];
        }"""
    )
    assert answers == [403, 403, 403, 403]


def test_markup_in_every_field_stays_text(letters: Airflow, person: Open) -> None:
    poison(letters)
    someone = person()
    for view in [*VIEWS, "letters?pipeline=leads&destination=salesforce", "lead?" + lead_query()]:
        frame = someone.open(view)
        frame.wait_for_function("() => !document.querySelector('main').textContent.includes('Loading…')")
        assert frame.locator("main img, main script").count() == 0, view
        assert frame.evaluate("document.body.dataset.pwned ?? null") is None, view
    frame = someone.open("letters")
    expect(frame.locator("main")).to_contain_text("<img src=x onerror=")
    with psycopg.connect(letters.stack.leadsync_dsn) as connection:
        connection.execute("DELETE FROM leadsync.dead_letter WHERE code = %s", (MARKUP,))


def lead_query() -> str:
    return str(requests.models.RequestEncodingMixin._encode_params({"pipeline": "leads", "external_id": MARKUP}))


def poison(airflow: Airflow) -> None:
    """Markup wherever a CRM, a lead or a person may have put it."""
    values = {"markup": MARKUP}
    with psycopg.connect(airflow.stack.leadsync_dsn) as connection:
        connection.execute(
            "INSERT INTO leadsync.dead_letter (destination_id, lead_key, external_id, sequence, reason, code, field, "
            "attempts) SELECT destination_id, gen_random_uuid(), %(markup)s, 1, 'rejected', %(markup)s, %(markup)s, 1 "
            "FROM leadsync.watermark WHERE pipeline = 'leads' AND destination = 'salesforce'",
            values,
        )
        connection.execute(
            "INSERT INTO leadsync.recovery_log (pipeline, destination, kind, message) "
            "VALUES ('leads', %(markup)s, %(markup)s, %(markup)s)",
            values,
        )
        connection.execute(
            "UPDATE leadsync.operation_log SET error = %(markup)s, failure = %(markup)s, result = 0 "
            "WHERE id = (SELECT max(id) FROM leadsync.operation_log)",
            values,
        )


def test_it_says_when_the_server_is_away_and_goes_on_after_it(letters: Airflow, person: Open) -> None:
    someone = person()
    frame = someone.open("overview")
    expect(frame.locator("article.card")).to_have_count(2)
    someone.page.route("**/leadsync/api/**", lambda route: route.abort())
    expect(frame.locator("#connection")).to_contain_text("can't be reached")
    expect(frame.locator("#connection")).to_contain_text("What you see is of")
    expect(frame.locator("article.card")).to_have_count(2)
    someone.page.unroute("**/leadsync/api/**")
    expect(frame.locator("#connection")).to_be_empty()
