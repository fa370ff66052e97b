"""The dashboard in a real browser: every page, the verbs, live streams, other eyes and hands, small screens."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import axe_playwright_python
import pytest
from playwright.sync_api import expect

from tests.e2e.conftest import Project
from tests.e2e.dashboard_world import PATIENCE, World, begin, browser

AXE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
PAGES = (
    "runs",
    "runs/lost-book",
    "start?workflow=publish",
    "inbox",
    "schedules",
    "queues",
    "workers",
    "models",
    "costs",
    "dead",
    "access",
)

pytestmark = pytest.mark.timeout(600)
expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A served house with one book that did not fit the press, and a worker."""
    project = Project(tmp_path_factory.mktemp("house"))
    try:
        with browser() as started:
            made = World(project, started, begin(project))
            project.begin("worker", "default")
            project.ok("start", "house:print_book", "--id", "lost-book", "--input", '{"pages": 120}')
            project.until_status("lost-book", "failed")
            yield made
    finally:
        project.close()


@pytest.fixture(autouse=True)
def _no_complaints(world: World) -> Iterator[None]:
    yield
    world.close_pages()
    complaints, world.complaints = world.complaints, []
    assert not complaints


def start(world: World, workflow: str, id: str, **input: Any) -> None:
    world.project.ok("start", f"house:{workflow}", "--id", id, "--input", json.dumps(input))


def article(title: str) -> dict[str, str]:
    return {"title": title, "text": "A long river runs through the town and nobody knows where it ends."}


def test_a_run_is_started_from_a_form_and_approved_in_the_inbox(world: World) -> None:
    page = world.open("start?workflow=publish")
    page.get_by_label("title").fill("The river <b>Spree</b>")
    page.get_by_label(re.compile("^text")).fill("It runs through the town.")
    page.get_by_label("kind").select_option("essay")
    page.get_by_text("Id, tags, budget").click()
    page.get_by_label("Id", exact=True).fill("spree")
    world.picture(page, "start")
    page.get_by_role("button", name="Start", exact=True).click()
    expect(page.get_by_role("heading", name="spree")).to_be_visible()
    expect(page.locator(".lede .pill.waiting")).to_be_visible()
    expect(page.locator(".lane")).to_have_count(5)
    expect(page.get_by_text("The river <b>Spree</b>")).to_be_visible()
    world.picture(page, "run")
    page.get_by_role("link", name=re.compile("^Inbox")).click()
    card = page.get_by_role("article", name="review of spree")
    card.get_by_label("accept").check()
    card.get_by_label(re.compile("^remarks")).fill("A fine piece.")
    world.picture(page, "inbox")
    card.get_by_role("button", name="Send").click()
    expect(card).to_have_count(0)
    page.goto(f"{world.url}/#/runs/spree")
    expect(page.locator(".lede .pill.completed")).to_be_visible()
    expect(page.get_by_text("A fine piece.").first).to_be_visible()
    page.locator(".lane", has_text="summarize").click()
    expect(page.get_by_role("region", name="Model calls")).to_contain_text("press:house-model")
    page.locator(".lane", has_text="check_facts").click()
    expect(page.get_by_text("Attempt 1 failed")).to_be_visible()


def test_dropped_files_start_a_run_each(world: World) -> None:
    page = world.open("start?workflow=archive")
    page.get_by_label(re.compile("^shelf")).fill("B")
    files: list[Any] = [
        {"name": name, "mimeType": "text/plain", "buffer": body} for name, body in (("a.txt", b"one"), ("b <i>.txt", b"three"))
    ]
    page.locator("input[type=file]").set_input_files(files)
    table = page.get_by_role("region", name="Uploaded files")
    expect(table.get_by_role("link")).to_have_count(2)
    table.get_by_role("link").nth(1).click()
    expect(page.locator(".lede .pill.completed")).to_be_visible()
    result = page.locator(".panel", has=page.get_by_role("heading", name="Result"))
    expect(result).to_contain_text("bytes: 5")
    expect(result).to_contain_text("shelf: B")


def test_tokens_are_seen_while_they_are_written(world: World) -> None:
    start(world, "read_aloud", "story", words=1)
    page = world.open("runs/story")
    tokens = page.get_by_role("log")
    expect(tokens).to_contain_text(re.compile(r"word-\d+ word-\d+ word-\d+"))
    world.picture(page, "live")
    (world.project.folder / "enough").touch()
    expect(page.locator(".lede .pill.completed")).to_be_visible()
    expect(tokens).to_have_count(0)


def test_a_failed_run_is_forked_with_an_edited_input(world: World) -> None:
    page = world.open("runs/lost-book")
    expect(page.locator(".banner.bad")).to_contain_text("120 pages do not fit <img src=x onerror=alert(1)> the press")
    page.get_by_role("button", name="Fork").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("pages").fill("80")
    dialog.get_by_label(re.compile("^Id")).fill("thin-book")
    dialog.get_by_role("button", name="Start the fork").click()
    expect(page.get_by_role("heading", name="thin-book")).to_be_visible()
    expect(page.locator(".lede .pill.completed")).to_be_visible()
    expect(page.get_by_role("link", name="lost-book")).to_be_visible()


def test_runs_are_found_filtered_and_acted_on_together(world: World) -> None:
    for number in range(3):
        start(world, "publish", f"batch-{number}", article=article(f"Part {number}"))
    page = world.open("runs")
    page.get_by_role("searchbox").fill("batch-")
    expect(page.locator("tbody tr.link")).to_have_count(3)
    expect(page.locator("tbody .pill.waiting")).to_have_count(3)
    world.picture(page, "runs")
    assert "search=batch-" in page.url
    for box in page.get_by_role("checkbox").all():
        box.check()
    page.get_by_role("button", name="cancel", exact=True).click()
    page.get_by_role("dialog").get_by_role("button", name="Cancel").click()
    expect(page.locator("tbody .pill.cancelled")).to_have_count(3)
    page.get_by_role("searchbox").fill("no such run")
    expect(page.get_by_text("No run matches")).to_be_visible()


def test_a_dead_letter_is_redriven(world: World) -> None:
    project = world.project
    project.environ["ZIGGURAT_TEST_NO_SEWING"] = "1"
    clumsy = project.begin("worker", "bindery")
    del project.environ["ZIGGURAT_TEST_NO_SEWING"]
    start(world, "bind", "bible", books=3)
    project.until_status("bible", "failed")
    clumsy.kill()
    page = world.open("dead")
    card = page.get_by_role("article").filter(has_text="bible")
    expect(card).to_contain_text("sew")
    world.picture(page, "dead")
    project.begin("worker", "bindery")
    card.get_by_role("button", name="Redrive").click()
    expect(page.get_by_text("No dead letters")).to_be_visible()
    project.until_status("bible", "completed")


def test_schedules_are_added_run_paused_and_removed(world: World) -> None:
    page = world.open("schedules")
    expect(page.get_by_role("article", name="morning")).to_contain_text("Europe/Berlin")
    page.get_by_role("button", name="Add a schedule").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Name", exact=True).fill("hourly")
    dialog.get_by_label("Workflow", exact=True).select_option("print_book")
    dialog.get_by_label("Cron").fill("0 25 * * *")
    dialog.get_by_label("pages").fill("5")
    dialog.get_by_role("button", name="Add", exact=True).click()
    expect(dialog.get_by_role("alert")).to_contain_text("bad hour")
    dialog.get_by_label("Cron").fill("0 * * * *")
    dialog.get_by_role("button", name="Add", exact=True).click()
    card = page.get_by_role("article", name="hourly")
    world.picture(page, "schedules")
    card.get_by_role("button", name="Pause").click()
    expect(card.locator(".pill.paused")).to_be_visible()
    card.get_by_role("button", name="Run now").click()
    expect(page.locator(".lede .pill.completed")).to_be_visible()
    page.goto(f"{world.url}/#/schedules")
    page.get_by_role("article", name="hourly").get_by_role("button", name="Remove").click()
    page.get_by_role("dialog").get_by_role("button", name="Remove").click()
    expect(page.get_by_role("article", name="hourly")).to_have_count(0)


def test_the_pages_of_the_system_show_it(world: World) -> None:
    page = world.open("queues")
    expect(page.get_by_role("region", name="default")).to_contain_text("1 worker")
    expect(page.get_by_role("region", name="default")).to_contain_text("Attempts that ended")
    world.picture(page, "queues")
    page.goto(f"{world.url}/#/workers")
    # Rows stand in the order of names, which hold process ids: which worker is the first is chance.
    expect(page.get_by_role("region", name="Workers").locator("tbody tr", has_text="default").first).to_be_visible()
    world.picture(page, "workers")
    page.goto(f"{world.url}/#/models")
    expect(page.get_by_role("region", name="fast", exact=True)).to_contain_text("press:house-model")
    expect(page.get_by_role("region", name="fast", exact=True)).to_contain_text("region eu · quality 4 of 5")
    fast = page.get_by_role("region", name="fast", exact=True)
    fast.get_by_role("button", name="Re-point").click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("Routes").fill("75% press:house-model\n25% press:new-model")
    dialog.get_by_label(re.compile("^Shadow")).fill("nowhere:x")
    dialog.get_by_role("button", name="Switch").click()
    expect(dialog.get_by_role("alert")).to_contain_text("the endpoint 'nowhere', which is not defined")
    dialog.get_by_label(re.compile("^Shadow")).fill("")
    dialog.get_by_role("button", name="Switch").click()
    expect(fast).to_contain_text("25% of calls")
    for number, priority in enumerate((1, 3, 5)):
        world.project.ok(
            "start", "house:consult", "--id", f"question-{number}", "--priority", str(priority), "--input", '{"question": "?"}'
        )
    # The worker tells of its calls, and the server, another process, shows them.
    library = page.get_by_role("region", name="Limits of library")
    expect(library.get_by_role("meter", name="calls at a time")).to_have_attribute("aria-valuetext", "1 of 1")
    expect(library.locator(".level")).to_have_count(2)
    expect(page.get_by_role("region", name="Limits of press")).to_contain_text("of 20,000")
    world.picture(page, "models")
    fast.get_by_role("button", name="Roll back").click()
    expect(fast).not_to_contain_text("press:new-model")
    start(world, "publish", "for-money", article=article("Money"))
    world.project.until_status("for-money", "waiting")
    page.goto(f"{world.url}/#/costs")
    expect(page.get_by_role("region", name="Costs")).to_contain_text("publish")
    page.get_by_role("button", name="Model", exact=True).click()
    expect(page.get_by_role("region", name="Costs")).to_contain_text("fast")
    page.get_by_role("button", name="Tenant", exact=True).click()
    expect(page.get_by_role("region", name="Costs")).to_contain_text("default")
    world.picture(page, "costs")
    page.goto(f"{world.url}/#/access")
    expect(page.get_by_role("region", name="Audit log").locator("tbody tr").first).to_be_visible()


def test_a_run_that_its_budget_parked_is_resumed_with_more(world: World) -> None:
    project = world.project
    project.ok(
        "start", "house:publish", "--id", "too-dear", "--budget", "$0.000001", "--input", json.dumps({"article": article("Gold")})
    )
    project.until_status("too-dear", "parked")
    page = world.open("costs")
    expect(page.get_by_role("region", name="All calls of a day")).to_contain_text("of $5.00")
    expect(page.get_by_role("meter", name="Workflow publish, a day: spent")).to_be_visible()
    runs = page.get_by_role("region", name="Runs with a budget")
    expect(runs.get_by_role("row").filter(has_text="too-dear")).to_contain_text("its own")
    page.get_by_role("heading", name="Budgets").evaluate("(heading) => heading.scrollIntoView({ block: 'start' })")
    world.picture(page, "budgets")
    runs.get_by_role("button", name="Resume too-dear").click()
    dialog = page.get_by_role("dialog")
    expect(dialog).to_contain_text("of the budget of the run too-dear")
    dialog.get_by_label("Its new budget").fill("+$1")
    dialog.get_by_role("button", name="Resume").click()
    project.until_status("too-dear", "waiting")
    expect(runs.get_by_role("row").filter(has_text="too-dear")).to_contain_text("waiting")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_keeps_people_out(world: World, scheme: Any) -> None:
    """axe-core finds nothing serious or critical, WCAG 2.1 AA contrast included."""
    page = world.open("runs", color_scheme=scheme)
    wrong: list[str] = []
    for name in PAGES:
        page.goto(f"{world.url}/#/{name}")
        expect(page.locator("main h1")).to_be_visible()
        page.wait_for_timeout(500)  # Until what it asked for is drawn; pages go on asking, so that none comes to rest.
        page.evaluate(AXE)
        found = page.evaluate("axe.run(document, {runOnly: ['wcag2a', 'wcag2aa', 'wcag21a', 'wcag21aa', 'best-practice']})")
        wrong += [
            f"{name} ({scheme}): {one['id']}: {one['help']}: {one['nodes'][0]['html'][:200]}"
            for one in found["violations"]
            if one["impact"] in ("serious", "critical")
        ]
    assert not wrong, "\n".join(wrong)


def test_no_page_scrolls_sideways_on_a_phone(world: World) -> None:
    page = world.open("runs", viewport={"width": 360, "height": 740})
    for name in PAGES:
        page.goto(f"{world.url}/#/{name}")
        expect(page.locator("main h1")).to_be_visible()
        width = page.evaluate("document.documentElement.scrollWidth")
        assert width <= 360, f"{name} is {width} pixels wide"
    page.goto(f"{world.url}/#/runs/lost-book")
    expect(page.locator(".lane").first).to_be_visible()
    world.picture(page, "phone")


def go_by_keys(page: Any, keys: str, heading: str) -> None:
    """Press two keys of which the second counts for a moment after the first: on a busy machine that takes more than one try."""
    for last in (False, False, True):
        for key in keys:
            page.keyboard.press(key)
        try:
            expect(page.get_by_role("heading", name=heading, exact=True)).to_be_visible(timeout=PATIENCE if last else 5_000)
        except AssertionError:
            if last:
                raise
        else:
            return


def test_it_works_from_the_keyboard(world: World) -> None:
    page = world.open("runs")
    expect(page.locator("tbody tr.link").first).to_be_visible()
    go_by_keys(page, "gc", "Costs")
    go_by_keys(page, "gr", "Runs")
    expect(page.locator("tbody tr.link").first).to_be_visible()
    page.keyboard.press("/")
    page.keyboard.type("lost-book")
    expect(page).to_have_url(re.compile("search=lost-book"))
    expect(page.locator("tbody tr.link")).to_have_count(1)
    page.locator("h1").click()
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="lost-book")).to_be_visible()
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_contain_text("light or dark")
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.keyboard.press("t")
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"
    page.reload()
    assert page.evaluate("document.documentElement.dataset.theme") == "dark"


def test_its_files_come_with_a_policy_and_are_asked_for_once(world: World) -> None:
    with urlopen(f"{world.url}/") as answer:
        policy, tag = answer.headers["content-security-policy"], answer.headers["etag"]
    assert "script-src 'self'" in policy
    assert "unsafe" not in policy
    page = world.open("runs")
    assert (
        page.evaluate(f"fetch('/', {{headers: {{'if-none-match': '{tag}'}}, cache: 'no-store'}}).then((answer) => answer.status)")
        == 304
    )
    assert page.evaluate("fetch('/static/..%2f__init__.py').then((answer) => answer.status)") == 404


def test_from_elsewhere_people_log_in_and_see_what_they_may(tmp_path: Path, world: World) -> None:
    project = Project(tmp_path)
    try:
        url = begin(project, server='auth = "always"')
        key = project.ok("keys", "create", "watcher", "--role", "viewer", "--json").json["key"]
        other = World(project, world.browser, url)
        page = other.open("runs")
        page.get_by_label("API key").fill("zk_wrong")
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_role("alert")).to_contain_text("unknown, revoked or expired")
        page.get_by_label("API key").fill(key)
        page.get_by_role("button", name="Log in").click()
        expect(page.get_by_text("No run yet")).to_be_visible()
        expect(page.get_by_role("link", name="Start a run")).to_have_count(0)
        expect(page.get_by_role("link", name="Access")).to_have_count(0)
        page.reload()
        expect(page.get_by_text("No run yet")).to_be_visible()
        page.get_by_role("button", name="Log out").click()
        expect(page.get_by_label("API key")).to_be_visible()
        other.close_pages()
        assert not other.complaints
    finally:
        project.close()
