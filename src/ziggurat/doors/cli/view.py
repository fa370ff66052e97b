"""How runs look to people: the live view of a run's steps, its plain twin where there is no terminal, and tables.

`RunPicture` keeps what a stream of `RunEvent`s says about one run, without any drawing; the two views draw it.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from ziggurat.doors.cli.common import console, say
from ziggurat.program.deferring import DETAIL
from ziggurat.records import Event, Progress, Run, RunEvent, StepView, Usage
from ziggurat.units import human_dollars, human_seconds

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.live import Live
    from rich.table import Table

#: Frames a second of the live view; below the point where a terminal over a slow line falls behind.
FRAMES_PER_SECOND = 8
#: Characters of streamed or emitted text shown for a step.
TAIL = 100

_SETTLED = {"step_completed": "completed", "step_failed": "failed", "timer_fired": "completed", "signal_received": "completed"}
STATUS_STYLES = {
    "completed": "green",
    "failed": "red",
    "cancelled": "yellow",
    "parked": "magenta",
    "paused": "yellow",
    "waiting": "cyan",
    "running": "blue",
    "retrying": "yellow",
}
_MARKS = {"completed": "✓", "failed": "✗", "cancelled": "∅", "retrying": "↻", "waiting": "…", "scheduled": "·"}


class RunPicture:
    """One run as its events paint it. `finished` is called with every step that comes to its end, once."""

    def __init__(self, run: Run, finished: Callable[[StepView], None] | None = None) -> None:
        self.id, self.workflow = run.id, run.workflow
        self.status: str = run.status
        self.reason = run.reason
        self.started_at = run.started_at or run.created_at
        self.steps: dict[int, StepView] = {}
        self.usage = Usage()
        #: The end of what a step, or the run itself as step 0, has streamed or emitted.
        self.tails: dict[int, str] = {}
        self._finished = finished

    def apply(self, happening: RunEvent) -> None:
        """Take in one event."""
        if happening.event is not None:
            self._event(happening.event)
        elif happening.step is not None:
            self.steps[happening.step.step] = happening.step
            if happening.step.status == "retrying":
                self.tails.pop(happening.step.step, None)
        elif happening.progress is not None:
            self._progress(happening.progress)
        elif happening.status:
            self.status, self.reason = happening.status, happening.reason

    def _event(self, event: Event) -> None:
        if event.usage is not None:
            self.usage = self.usage + event.usage
        if event.kind == "run_continued":
            self.steps.clear()
            self.tails.clear()
        elif event.step and event.kind == "attempt_failed":
            view = self.steps.get(event.step) or StepView(
                step=event.step, kind=event.step_kind, name=event.name, status="retrying"
            )
            if event.detail == DETAIL and event.error is not None:
                waits = event.error.message
                self.steps[event.step] = replace(view, status="waiting", attempt=event.attempt + 1, detail=waits, error=None)
            else:
                self.steps[event.step] = replace(view, status="retrying", attempt=event.attempt + 1, error=event.error)
        elif event.step and event.kind in _SETTLED:
            view = StepView(
                step=event.step,
                kind=event.step_kind,
                name=event.name,
                status=_SETTLED[event.kind],  # type: ignore[arg-type]
                attempt=max(1, event.attempt),
                requested_at=event.requested_at,
                started_at=event.started_at or event.requested_at or None,
                ended_at=event.ended_at or event.at,
                usage=event.usage or Usage(),
                error=event.error,
            )
            self.steps[event.step] = view
            self.tails.pop(event.step, None)
            if self._finished is not None:
                self._finished(view)

    def _progress(self, progress: Progress) -> None:
        if progress.kind not in ("token", "emit"):
            return
        value = json.loads(bytes(progress.data))
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        before = self.tails.get(progress.step, "") if progress.kind == "token" else ""
        self.tails[progress.step] = (before + text)[-TAIL:]


# -- views ----------------------------------------------------------------------------------------------------------


class PlainView:
    """One line for each step that ends, and for what the run waits for: for logs and pipes."""

    def __init__(self, run: Run) -> None:
        self.picture = RunPicture(run, self._finished)
        self._said = ""

    def __enter__(self) -> PlainView:
        say(f"{self.picture.id} {self.picture.status}")
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def apply(self, happening: RunEvent) -> None:
        """Take in one event, and say what is worth a line."""
        self.picture.apply(happening)
        waits = self.picture.reason if self.picture.status in ("waiting", "paused") else ""
        # A timer of moments would be a line a moment; only what needs someone else is said.
        if happening.kind == "status" and waits and waits != self._said and ("signal" in waits or "paused" in waits):
            say(f"{self.picture.id} {self.picture.status}: {waits}")
            self._said = waits

    def _finished(self, step: StepView) -> None:
        say(step_line(step))


class LiveView:
    """The steps of a run, redrawn as they change: for terminals."""

    def __init__(self, run: Run) -> None:
        self.picture = RunPicture(run)
        self._live: Live | None = None

    def __enter__(self) -> LiveView:
        from rich.live import Live

        self._live = Live(
            console=console(stderr=True), refresh_per_second=FRAMES_PER_SECOND, get_renderable=self._draw, transient=False
        )
        self._live.__enter__()
        return self

    def __exit__(self, *exc: object) -> None:
        if self._live is not None:
            self._live.__exit__(None, None, None)

    def apply(self, happening: RunEvent) -> None:
        """Take in one event; the next frame shows it."""
        self.picture.apply(happening)

    def _draw(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        picture = self.picture
        height = self._live.console.height if self._live is not None else 24
        shown, hidden = visible_steps(picture.steps.values(), max(4, height - 5))
        head = Text.assemble(
            (picture.status, STATUS_STYLES.get(picture.status, "")),
            f"  {picture.id}  {human_seconds(max(0.0, time.time() - picture.started_at))}{usage_text(picture.usage)}",
        )
        if picture.reason and picture.status != "running":
            head.append(f"  {picture.reason}", style="dim")
        parts: list[RenderableType] = [steps_table(shown, picture.tails)]
        if hidden:
            parts.insert(0, Text(f"  {hidden} more steps completed", style="dim"))
        if 0 in picture.tails:
            parts.append(Text(f"  {_one_line(picture.tails[0])}", style="dim"))
        return Group(*parts, head)


def view_of(run: Run) -> LiveView | PlainView:
    """Return the view that fits where stderr goes."""
    return LiveView(run) if console(stderr=True).is_terminal else PlainView(run)


def visible_steps(steps: Iterable[StepView], rows: int) -> tuple[list[StepView], int]:
    """Return the steps that fit: all open and failed ones first, then the newest; and how many are left out."""
    every = sorted(steps, key=lambda s: s.step)
    if len(every) <= rows:
        return every, 0
    urgent = [s for s in every if s.open][:rows]
    rest = [s for s in every if not s.open]
    kept = rest[len(rest) - max(0, rows - len(urgent)) :]
    return sorted([*urgent, *kept], key=lambda s: s.step), len(every) - len(urgent) - len(kept)


def steps_table(steps: Iterable[StepView], tails: dict[int, str] | None = None) -> Table:
    """Return steps as a table for a terminal."""
    from rich.spinner import Spinner
    from rich.table import Table
    from rich.text import Text

    # The note takes what the other columns leave, and is cut where the line ends.
    table = Table.grid(padding=(0, 2), expand=tails is not None or sys.stdout.isatty())
    for column in ("mark", "number", "name", "status", "time", "usage"):
        table.add_column(column, justify="right" if column in ("number", "time") else "left", no_wrap=True)
    table.add_column("note", no_wrap=True, overflow="ellipsis", ratio=1)
    for step in steps:
        style = STATUS_STYLES.get(step.status, "dim")
        mark: RenderableType = Text(_MARKS.get(step.status, " "), style=style)
        if step.status == "running" and tails is not None:
            mark = Spinner("dots", style=style)
        name = step.name if step.kind == "task" else f"{step.kind} {step.name}".strip()
        status = step.status if step.attempt == 1 else f"{step.status} (attempt {step.attempt})"
        note = _one_line(step.error.message)[:TAIL] if step.error is not None else _one_line((tails or {}).get(step.step, ""))
        if step.status == "waiting" and step.kind == "task":
            note = note or _one_line(step.detail)
        table.add_row(
            mark,
            str(step.step),
            Text(name),
            Text(status, style=style),
            _duration(step),
            usage_text(step.usage).strip(),
            Text(note, style="red" if step.error is not None else "dim"),
        )
    return table


def runs_table(runs: Iterable[Run], now: float) -> Table:
    """Return runs as a table."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("Run", "Workflow", "Status", "Started", "Took", "Tokens", "Cost", "Note"):
        # An id that is cut short cannot be copied.
        table.add_column(
            column,
            justify="right" if column in ("Took", "Tokens", "Cost") else "left",
            no_wrap=column != "Note",
            overflow="fold" if column == "Run" else "ellipsis",
        )
    for run in runs:
        took = (run.ended_at or now) - (run.started_at or run.created_at)
        tokens = run.usage.input_tokens + run.usage.output_tokens
        note = f"{run.error.type}: {run.error.message}" if run.error is not None and run.status != "parked" else run.reason
        table.add_row(
            Text(run.id),
            Text(run.workflow),
            Text(run.status, style=STATUS_STYLES.get(run.status, "")),
            f"{human_seconds(max(0.0, now - run.created_at))} ago",
            human_seconds(max(0.0, took)),
            f"{tokens:,}" if tokens else "",
            human_dollars(run.usage.cost_usd) if run.usage.calls else "",
            Text(_one_line(note), style="dim"),
        )
    return table


def step_line(step: StepView) -> str:
    """Return a finished step as one line of plain text."""
    name = step.name if step.kind == "task" else f"{step.kind} {step.name}".strip()
    attempts = f" at attempt {step.attempt}" if step.attempt > 1 else ""
    took = _duration(step)
    error = f": {_one_line(step.error.message)}" if step.error is not None else ""
    return f"step {step.step} {name} {step.status}{attempts}{f' in {took}' if took else ''}{usage_text(step.usage)}{error}"


def usage_text(usage: Usage) -> str:
    """Return tokens and cost, with a gap before; nothing for no calls."""
    tokens = usage.input_tokens + usage.output_tokens
    return f"  {tokens:,} tokens  {human_dollars(usage.cost_usd)}" if usage.calls or tokens else ""


def _duration(step: StepView) -> str:
    if step.started_at is None:
        return ""
    end = step.ended_at if not step.open else time.time()
    return human_seconds(max(0.0, end - step.started_at)) if end is not None else ""


def _one_line(text: str) -> str:
    return " ".join(text.split())


def describe_value(value: Any, limit: int = 300) -> str:
    """Return a JSON value on one line, cut where it is long."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= limit else text[: limit - 1] + "…"
