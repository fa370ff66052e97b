"""A small publishing house under `ziggurat serve`, and a browser to look at it with."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from tests.conftest import missing_service
from tests.e2e.conftest import Project
from tests.ports import free_port, listens

#: Milliseconds after which something that must come has not come.
PATIENCE = 90_000
#: Where the pictures of the documentation go when DASHBOARD_PICTURES is set.
PICTURES = Path(__file__).parents[2] / "docs" / "img"

PROGRAM = '''
    import asyncio
    import os
    from pathlib import Path
    from typing import Literal

    from pydantic import BaseModel, Field

    from ziggurat import Artifact, Retry, emit, llm, signal, state, task, task_info, workflow


    class Article(BaseModel):
        """What an author hands in."""

        title: str = Field(description="As it will be printed.")
        text: str
        kind: Literal["news", "essay", "review"] = "news"
        words_at_most: int | None = Field(None, description="Longer articles go back.")


    class Verdict(BaseModel):
        """An editor's decision."""

        accept: bool
        remarks: str = ""


    @task
    async def count_words(text: str) -> int:
        await asyncio.sleep(0.1)
        return len(text.split())


    @task
    async def summarize(text: str) -> str:
        return await llm.text(f"Summarize in one sentence: {text}", model="fast")


    @task(retry=Retry(attempts=3, initial="100ms"))
    async def check_facts(title: str) -> list[str]:
        await asyncio.sleep(0.1)
        if task_info().attempt == 1:
            raise ConnectionError(f"the archive did not answer about {title!r}")
        return ["dates", "names"]


    @workflow(tags={"desk": "culture"})
    async def publish(article: Article) -> dict[str, object]:
        """Check an article, summarize it, and let an editor decide."""
        words, summary, facts = await asyncio.gather(
            count_words(article.text), summarize(article.text), check_facts(article.title)
        )
        state(words=words, summary=summary, checked=facts)
        verdict = await signal("review", Verdict, timeout="3d")
        return {"published": verdict.accept, "title": article.title, "words": words, "remarks": verdict.remarks}


    @task
    async def write_aloud(words: int) -> str:
        # Goes on until it was heard: what is said while nobody listens is not kept.
        n = 0
        while n < words or not Path("enough").exists():
            emit(f"word-{n} ", "token")
            n += 1
            await asyncio.sleep(0.05)
        return f"{words} words"


    @workflow
    async def read_aloud(words: int = 40) -> str:
        """Write a text word by word, for whoever listens."""
        return await write_aloud(words)


    @task(retry=Retry(attempts=1))
    async def typeset(pages: int) -> int:
        if pages > 99:
            raise ValueError(f"{pages} pages do not fit <img src=x onerror=alert(1)> the press")
        return pages


    @workflow
    async def print_book(pages: int) -> int:
        """Print a book of so many pages."""
        return await typeset(pages)


    @task
    async def measure(document: Artifact) -> int:
        return len(await document.read())


    @workflow
    async def archive(document: Artifact, shelf: str = "A") -> dict[str, object]:
        """Keep a document, and say how long it is."""
        return {"name": document.name, "bytes": await measure(document), "shelf": shelf}


    @workflow
    async def consult(question: str) -> str:
        """Ask a library that answers one question at a time, and takes its time."""
        return await llm.text(question, model="library")


    @workflow
    async def bind(books: int) -> int:
        """Bind books with a task that one kind of worker does not know."""
        return await sew(books)


    if not os.environ.get("ZIGGURAT_TEST_NO_SEWING"):

        @task(queue="bindery")
        async def sew(books: int) -> int:
            return books
'''
SETTINGS = """
    [app]
    modules = ["house"]
    [queue]
    backend = "sqlite"
    max_deliveries = 1
    [server]
    port = {port}
    {server}
    [workers.default]
    queues = ["default"]
    [workers.bindery]
    queues = ["bindery"]
    [inference.endpoints.press]
    kind = "scripted"
    options = {{ latency = 0.2, tokens_per_second = 200 }}
    limits = {{ tokens_per_minute = 20000, requests_per_minute = 240, concurrency = 8 }}
    region = "eu"
    quality = {{ "*" = 4 }}
    [inference.endpoints.press.prices]
    "house-model" = {{ input = "$3", output = "$15" }}
    [inference.endpoints.library]
    kind = "scripted"
    options = {{ latency = 3600.0 }}
    limits = {{ concurrency = 1 }}
    [inference.models.fast]
    routes = ["press:house-model"]
    [inference.models.library]
    routes = ["library:archive"]
    [inference.budgets]
    call = "$0.50"
    day = "$5"
    workflows = {{ publish = "$0.01" }}
    tenants = {{ "*" = "$2" }}
    [schedules.morning]
    workflow = "read_aloud"
    input = {{ words = 5 }}
    cron = "0 6 * * 1-5"
    timezone = "Europe/Berlin"
"""


class World:
    """A served project and a browser; `page` is where a test looks."""

    def __init__(self, project: Project, browser: Browser, url: str) -> None:
        self.project, self.browser, self.url = project, browser, url
        self._contexts: list[BrowserContext] = []
        #: What the browser complained of: scripts that failed, and what the content policy forbade.
        self.complaints: list[str] = []

    def open(self, path: str = "", **options: Any) -> Page:
        """Open a page of the dashboard in a browser that knows nothing yet."""
        context = self.browser.new_context(**{"viewport": {"width": 1280, "height": 860}, "locale": "en-GB", **options})
        context.set_default_timeout(PATIENCE)
        self._contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: self.complaints.append(f"script: {error}"))
        page.on("console", self._console)
        page.goto(f"{self.url}/#/{path}")
        return page

    def _console(self, message: Any) -> None:
        # A request that the server refuses shows here too; the page says so itself.
        if message.type == "error" and "Failed to load resource" not in message.text:
            self.complaints.append(f"console: {message.text}")

    def close_pages(self) -> None:
        for context in self._contexts:
            context.close()
        self._contexts.clear()

    def picture(self, page: Page, name: str) -> None:
        """Take a picture for the documentation, if it is to be made anew."""
        if os.environ.get("DASHBOARD_PICTURES"):
            PICTURES.mkdir(exist_ok=True)
            page.wait_for_timeout(400)
            page.screenshot(path=PICTURES / f"dashboard-{name}.png")


def chromium() -> str:
    """Return the browser's path, or skip; CI must have it."""
    found = os.environ.get("PLAYWRIGHT_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
    if not found:
        missing_service("Chromium (or one that PLAYWRIGHT_CHROMIUM names)", "apt install chromium")
    return found


@contextmanager
def browser() -> Iterator[Browser]:
    """Run a browser."""
    with sync_playwright() as playwright:
        flags = (
            "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update "
            "--disable-sync"
        )
        started = playwright.chromium.launch(executable_path=chromium(), args=flags.split())
        try:
            yield started
        finally:
            started.close()


def begin(project: Project, *, server: str = "") -> str:
    """Write the project, serve it, and return its address."""
    port = free_port()
    project.write("house.py", PROGRAM)
    project.write("ziggurat.toml", SETTINGS.format(port=port, server=server))
    project.begin("serve", "--no-workers")
    project.until_served()
    project.until(lambda: listens(port), "the API listens")  # A moment after the state has an owner.
    return f"http://127.0.0.1:{port}"
