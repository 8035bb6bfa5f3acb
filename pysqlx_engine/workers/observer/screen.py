"""What `pysqlx-ctl top` shows, as lines of text: a function of what was seen and of the terminal's size."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from rich.table import Table
from rich.text import Text

from ..jobs.life import State
from ..messages import shown
from ..status import BudgetStatus, RunStatus
from .history import between, quantile, since
from .jobs import JobsStatus

_BAR = (
    ("in_use", "in use", "█", "#", "green"),
    ("idle", "idle", "▒", "=", "cyan"),
    ("connecting", "opening", "░", "+", "yellow"),
    ("closing", "closing", "░", "-", "yellow"),
    ("quarantined", "of the dead", "x", "x", "red"),
)
"""What a budget's bar is made of: not of colours alone."""
_JOB_STATES = (State.AVAILABLE, State.RUNNING, State.RETRYING, State.SCHEDULED)
_MOST_TASKS = 8


@dataclass
class Seen:
    """What there is to show."""

    run: str
    status: RunStatus | None
    """None: the run does not answer."""
    failure: str = ""
    earlier: RunStatus | None = None
    """A look some seconds before, for what is counted."""
    seconds: float = 0.0
    """Between the two."""
    jobs: list[JobsStatus] = field(default_factory=list)
    clock: str = ""
    first: int = 0
    """How many workers were scrolled away."""


def screen(seen: Seen, width: int, height: int, *, ascii_only: bool = False) -> list[Text | Table]:
    """The lines, the tables among them, for so many columns and rows."""
    status = seen.status
    if status is None:
        return [_head(seen, "does not answer", "bold red", width), Text(shown(seen.failure), "red")]
    health = status.health
    state = "ready" if health.ready else "NOT READY"
    if health.workers is not None:
        state += f", {health.up} of {health.workers} workers up"
    state += "".join(f", {what}" for what in health.missing)
    lines: list[Text | Table] = [_head(seen, state, "bold green" if health.ready else "bold red", width)]
    if status.deaths:
        lines.append(Text(f"{_count(status.deaths, 'process', 'processes')} died with open pools", "yellow"))
    earlier = {budget.database: budget for budget in seen.earlier.budgets} if seen.earlier is not None else {}
    for budget in status.budgets:
        lines.append(Text(""))
        lines.extend(_budget(budget, earlier.get(budget.database), seen.seconds, width, ascii_only=ascii_only))
    queues = [line for jobs in seen.jobs for line in _queues(jobs)]
    taken = sum(_height(line) for line in (*lines, *queues))
    room = max(3, height - taken - 4)
    lines += [Text(""), *_workers(status, seen.first, room)]
    return lines + queues


def _head(seen: Seen, state: str, style: str, width: int) -> Text:
    left = Text.assemble(("run ", "dim"), (shown(seen.run), "bold"), "  ", (state, style))
    right = f"{seen.clock}  q quits"
    left.append(" " * max(2, width - left.cell_len - len(right)))
    left.append(right, "dim")
    return left


def _budget(
    budget: BudgetStatus, earlier: BudgetStatus | None, seconds: float, width: int, *, ascii_only: bool
) -> Iterable[Text]:
    yield Text(shown(budget.database), "bold", overflow="ellipsis", no_wrap=True)
    parts = [(getattr(budget, name), name_shown, ascii_ if ascii_only else glyph, style)
             for name, name_shown, glyph, ascii_, style in _BAR]  # fmt: skip
    cells = max(10, width - 4)
    bar = Text("  [")
    total, filled = max(budget.size, budget.leased, 1), 0
    seen = 0
    for count, _, glyph, style in parts:
        seen += count
        upto = round(cells * seen / total)
        if count:
            upto = max(upto, filled + 1)  # however small a part is, it is seen
        upto = min(max(upto, filled), cells)
        bar.append(glyph * (upto - filled), style)
        filled = upto
    yield bar.append(("." if ascii_only else "·") * (cells - filled), "dim").append("]")
    said = ", ".join(f"{count} {what}" for count, what, _, _ in parts if count or what in {"in use", "idle"})
    free = max(0, budget.usable - budget.leased)
    kept = f", {budget.reserved} kept back" if budget.reserved else ""
    yield Text(f"  {budget.leased} of {budget.size}: {said}, {free} free{kept}")
    waiting = Text("  ").append(
        f"{budget.waiting} waiting", "bold red" if budget.waiting and not free else "yellow" if budget.waiting else ""
    )
    if earlier is not None and seconds > 0:
        waits = between(earlier.totals.wait, budget.totals.wait)
        requests = since(earlier.totals.requests, budget.totals.requests)
        timeouts = since(earlier.totals.timeouts, budget.totals.timeouts)
        if any(waits):
            shares = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))
            waiting.append("   wait " + " ".join(f"{name} {_short(quantile(waits, share))}" for name, share in shares))
        waiting.append(f"   {requests / seconds:,.0f} check-outs/s")
        if timeouts:
            yield Text(f"  {_count(timeouts, 'timeout')} in {seconds:.0f} s", "bold red")
    yield waiting
    counted = budget.totals
    held = f"held {_short(counted.hold.sum / counted.hold.count)} on average; " if counted.hold.count else ""
    yield Text(f"  {held}{counted.opened:,} opened, {budget.recalled:,} asked back", "dim")


def _workers(status: RunStatus, first: int, room: int) -> Iterable[Text | Table]:
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
    table.add_column("worker", no_wrap=True)
    for column in ("pid", "up", "restarts", "leases", "in use", "idle", "waiting"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("state", no_wrap=True)
    workers = status.workers[first : first + room]
    for worker in workers:
        name = str(worker.worker) if worker.worker is not None else worker.name or "-"
        state = str(worker.state or "")
        table.add_row(
            name, str(worker.pid or "-"), duration(worker.uptime), str(worker.restarts), str(worker.leases),
            str(worker.in_use), str(worker.idle), str(worker.waiting),
            Text(state, "" if state in {"up", ""} else "yellow"),
            style="" if worker.leases or worker.waiting else "dim",
        )  # fmt: skip
    yield table
    rest = len(status.workers) - first - len(workers)
    if first or rest > 0:
        yield Text(f"{first} above, {max(0, rest)} below: up and down", "dim")


def _queues(jobs: JobsStatus) -> Iterable[Text | Table]:
    yield Text("")
    if jobs.error is not None:
        yield Text(f"jobs: {shown(jobs.error)}", "dim", overflow="ellipsis", no_wrap=True)
        return
    yield Text.assemble(
        ("jobs", "bold"), f"  {jobs.per_second:,.1f} ended/s, {_count(jobs.dispatchers, 'dispatcher')}",
        (f", paused: {', '.join(shown(queue.name) for queue in jobs.paused)}" if jobs.paused else "", "yellow"),
    )  # fmt: skip
    table = Table(box=None, pad_edge=False, padding=(0, 1), header_style="bold")
    table.add_column("queue", no_wrap=True, max_width=14)
    table.add_column("task", no_wrap=True, max_width=20)
    for state in _JOB_STATES:
        table.add_column(str(state), justify="right", no_wrap=True)
    table.add_column("oldest", justify="right", no_wrap=True)
    busy = sorted(jobs.tasks, key=lambda task: -sum(task.states.get(state, 0) for state in _JOB_STATES))
    for task in busy[:_MOST_TASKS]:
        counts = [task.states.get(state, 0) for state in _JOB_STATES]
        oldest = "-" if task.oldest_waits is None else _short(task.oldest_waits)
        table.add_row(shown(task.queue), shown(task.task), *(f"{count:,}" for count in counts), oldest)
    if busy:
        yield table
    if len(busy) > _MOST_TASKS:
        yield Text(f"{len(busy) - _MOST_TASKS} more tasks: pysqlx-ctl jobs stats", "dim")


def _height(line: Text | Table) -> int:
    return 1 if isinstance(line, Text) else line.row_count + 1


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _short(seconds: float) -> str:
    if seconds < 0.001:
        return f"{seconds * 1e6:.0f} us"
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 60 else duration(seconds)


def duration(seconds: float) -> str:
    """As a clock shows it: 3:07, 1:02:03, 2d 01:02:03."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d {hours:02}:{minutes:02}:{rest:02}"
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
