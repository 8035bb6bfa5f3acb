"""The supervisor: starts the coordinator and the workers, restarts what dies, passes signals on, ends with a status.

One loop, one dictionary of children. Signal handlers do nothing: the interpreter writes the signal's number into a pipe
that the loop reads. Deaths arrive in the same selector (see `deaths`), so nothing polls. Which worker starts or ends is
decided by `formation`, which knows no processes and no clock.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import selectors
import signal
import time
import types
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import msgspec
from setproctitle import setproctitle

from ..errors import SettingsError
from ..system import nonblocking_pipe
from .children import UP_AFTER, Child, Slot
from .counting import Counted
from .crew import crew_of, health_of, status_of
from .deaths import Deaths, deaths
from .endpoints import local
from .formation import (
    End,
    Formation,
    GiveUp,
    Place,
    Promote,
    RestartPolicy,
    Retire,
    Say,
    Start,
    Step,
    Verdict,
    too_often,
)
from .jobs.served import DIRECTORY, MAX_JOBS, MAX_MEMORY, DispatcherSpec, Recycle, Retired, ServedQueue, Serving
from .launching import Launcher
from .logs import Voice
from .observer.spec import ObserverSpec, shown
from .output import Pump, log_to
from .plan import RunPlan
from .process import (
    CHILD_SIGNALS,
    STEERING_SIGNALS,
    allow_open_files,
    coordinator_main,
    describe_exit,
    dispatcher_main,
    kill_group,
    observer_main,
    reap,
)
from .progress import Progress
from .status import Crew, Health, RunStatus
from .systemd import Systemd
from .worker import BOOT_FAILURE, MESSAGE_LIMIT, BootFailure, Message, PoolStarted, Statistics, WorkerSpec
from .worker import main as worker_main

if TYPE_CHECKING:
    from .control import Json, Reply
    from .coordinator import CoordinatorConfig

__all__ = ["DONE", "FAILED", "Supervisor"]

DONE = 0
FAILED = 1

_COORDINATOR_GRACE = 5.0  # seconds for a coordinator to end: it has nothing to wait for
_OBSERVER_GRACE = 5.0  # the same for an observer whose place another one takes
_DOUBT = 2.0  # seconds after a worker's death in which a dispatcher that dies may not have seen to its jobs
_START_WITHIN = 60.0  # seconds for a worker that takes another one's place to serve
_UP_WITHOUT_A_POOL = 10.0  # the same where the one before had a pool: this one perhaps starts it when it needs it
_STATS_TIMEOUT = 1.0  # seconds for a worker to answer
MOST_WORKERS = 4096  # as the settings have it
_LOOK_AGAIN = 3600.0  # seconds: the kernel takes no more than some weeks
_MANY = 8  # workers whose start takes long enough to say how far it is
_NAMED = 8  # workers that are named in a line
_OUTPUT_GRACE = 1.0  # seconds for the last lines, when we were told to stop and nobody reads them

_MESSAGE = msgspec.json.Decoder(Message)


class _RefusedOrder(Exception):
    """Why it is not done."""


class Supervisor:
    """Runs a plan. Use it once, from the main thread of a process that does nothing else."""

    def __init__(self, plan: RunPlan) -> None:
        self._plan = plan
        self._run_id = secrets.token_hex(4)
        self._selector = selectors.DefaultSelector()
        self._deaths: Deaths[int] = deaths()  # by pid
        self._selector.register(self._deaths, selectors.EVENT_READ, self._on_deaths)
        shared_budget = plan.start_coordinator or plan.coordinator is not None
        self._formation = Formation(
            plan.workers, plan.restart, shared_budget=shared_budget, development=plan.watched is not None
        )
        self._shared_budget = shared_budget
        self._settings = plan.environment()
        self._max_size = plan.max_size
        self._coordinator: Slot | None = None
        if plan.start_coordinator:
            self._coordinator = Slot("coordinator", RestartPolicy("always"))
        self._dispatchers: dict[str, Slot] = {}  # by the socket of their queue
        self._observer = Slot("observer", RestartPolicy("always")) if plan.listening is not None else None
        self._died_at = 0.0  # when a worker has died last
        self._children: dict[int, Child] = {}  # by pid
        self._workers_started = False
        self._any_had_a_pool = False
        self._stopping = False  # nothing is started any more
        self._systemd = Systemd(os.environ)
        self._told_to_stop = False
        self._had_terminal = _has_terminal()
        self._interrupts = 0
        self._starting: Progress | None = None
        self._draining: Progress | None = None
        self._to_drain = 0  # how many workers there were then
        self._kill_at: float | None = None
        self._status = DONE
        self._questions: list[Reply] = []
        self._counted = Counted()
        self._answer_by: float | None = None
        self._stdout = Pump(1)
        self._stderr = Pump(2)
        messages, self._messages = nonblocking_pipe()
        self._stderr.add(messages, b"pysqlx-run: " if plan.logs.format == "text" else b"")
        self._voice = Voice(plan.logs, "supervisor")
        pumps = (self._stdout, self._stderr) if plan.prefix else None
        self._launcher = Launcher(plan.name, plan.logs, self._deaths, pumps)

    # -- the loop -----------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Run the plan to its end. Returns the exit status: 0 done, 1 a script failed, 3 boot failure."""
        setproctitle(f"pysqlx-run: supervisor {self._plan.name}")
        try:
            with self._signals(), self._control_server(), self._file_watch():
                self._start()
                while self._children or self._restarts_pending():
                    self._step()
        finally:
            for child in self._children.values():  # only after an error of our own
                kill_group(child.pid)
            self._deaths.close()
            self._systemd.close()
            os.close(self._messages)
            grace = _OUTPUT_GRACE if self._told_to_stop else None
            self._stderr.close(grace)
            self._stdout.close(grace)
        if self._status == DONE and self._formation.failed:
            return FAILED
        return self._status

    def _start(self) -> None:
        self._launcher.prepare()
        if self._coordinator is None:
            self._start_workers()
        else:
            self._start_child(self._coordinator)

    def _start_workers(self) -> None:
        self._workers_started = True
        if self._observer is not None:
            self._start_observer(self._observer)
        if self._plan.workers >= _MANY:
            self._starting = Progress(time.monotonic())
        self._perform(self._formation.start())

    def _start_observer(self, slot: Slot) -> None:
        listening = self._plan.listening
        assert listening is not None
        if listening.dashboard is not None:
            # A token that nobody knows yet is told whoever wants to hear less.
            self._say(f"dashboard at {listening.url}", logging.WARNING if listening.generated else logging.INFO)
        if listening.metrics is not None:
            self._say(f"metrics at http://{shown(listening.metrics)}/metrics")
        self._start_child(slot)

    def _restarts_pending(self) -> bool:
        return not self._formation.over or any(slot.restart_at is not None for slot in self._slots())

    def _slots(self) -> Iterator[Slot]:
        if self._coordinator is not None:
            yield self._coordinator
        yield from self._dispatchers.values()
        if self._observer is not None:
            yield self._observer

    def _step(self) -> None:
        """Wait for something to happen and deal with it, then with what the time has come for."""
        for key, _ in self._selector.select(self._time_to_wait()):
            # An earlier event of this round may have closed the descriptor of a later one.
            if self._selector.get_map().get(key.fd) is key:
                key.data()
        now = time.monotonic()
        if self._kill_at is not None and now >= self._kill_at:
            self._kill_after_grace()
        for child in list(self._children.values()):
            if child.kill_at is not None and now >= child.kill_at:
                child.kill_at = child.up_at = None
                self._say(f"{child.name} ({child.pid}) has not ended in time: killing it", logging.WARNING)
                kill_group(child.pid)
            if child.up_at is not None and now >= child.up_at:
                self._is_up(child)
        if self._answer_by is not None and now >= self._answer_by:
            self._answer()
        for slot in list(self._slots()):
            if slot.restart_at is not None and now >= slot.restart_at:
                slot.restart_at = None
                slot.restarts += 1
                self._start_child(slot)
        due = self._formation.due()
        if due is not None and now >= due:
            self._perform(self._formation.tick(now))
        self._wind_down()
        self._say_how_many_are_up(len(self._formation.expected), now)
        self._say_how_many_still_run(now)
        self._tell_systemd(now)

    def _say_how_many_are_up(self, workers: int, now: float) -> None:
        """Of so many, while they start."""
        starting = self._starting
        if starting is None or now < starting.due:
            return
        up = self._health(now).up or 0
        done = up >= workers or self._stopping
        if not (done and starting.said is None) and starting.says(f"{up} of {workers} workers are up", now):
            self._say(starting.said or "")
        if done:
            self._starting = None

    def _say_how_many_still_run(self, now: float) -> None:
        """While they drain."""
        if self._draining is None or now < self._draining.due:
            return
        left = sorted(child.place.number for child in self._workers() if child.place is not None)
        if not left or self._kill_at is None:
            self._draining = None
            return
        which = f" ({', '.join(map(str, left))})" if len(left) <= _NAMED else ""
        text = f"draining: {len(left)} of {self._to_drain} workers still run{which}"
        if self._draining.says(text, now):
            self._say(f"{text}; they are killed in {self._kill_at - now:.0f} s")

    def _tell_systemd(self, now: float) -> None:
        told = self._systemd
        if not told.listens:
            return
        if told.due is not None and now >= told.due:
            told.alive()
        if self._stopping:
            told.stopping()
        elif not self._formation.reloading:
            health = self._health(now)
            told.status(f"{health.up} of {health.workers} workers", ready=health.ready)

    @property
    def _looks_up_at(self) -> float | None:
        """When the next worker counts as up although it has said nothing."""
        if not self._systemd.listens:
            return None
        now = time.monotonic()
        moments = [child.started + UP_AFTER for child in self._workers()]
        return min((moment for moment in moments if moment > now), default=None)

    def _health(self, now: float) -> Health:
        expected = self._formation.expected if self._workers_started else self._formation.staying
        coordinator = self._coordinator is None or self._coordinator.child is not None
        running = self._workers_started and not self._stopping
        return health_of(expected, self._children, now, coordinator=coordinator, running=running)

    def _crew(self, now: float) -> Crew:
        slots = [slot for slot in self._slots() if slot is not self._coordinator]
        others = [slot.child for slot in slots if slot.child is not None]
        places, health = self._formation.places, self._health(now)
        return crew_of(places, self._children, others, health, now, stopping=self._stopping)

    def _time_to_wait(self) -> float | None:
        due = [slot.restart_at for slot in self._slots()]
        due += [moment for child in self._children.values() for moment in (child.kill_at, child.up_at)]
        due += [self._kill_at, self._answer_by, self._formation.due(), self._systemd.due]
        due += [self._looks_up_at]
        due += [progress.due for progress in (self._starting, self._draining) if progress is not None]
        moments = [moment for moment in due if moment is not None]
        return min(_LOOK_AGAIN, max(0.0, min(moments) - time.monotonic())) if moments else None

    def _say(self, text: str, level: int = logging.INFO, *, asked: bool = False) -> None:
        """A line of our own on stderr. It is dropped rather than waited for when nobody reads them."""
        line = self._voice.line(text, level, asked=asked)
        if line is not None:
            with contextlib.suppress(BlockingIOError):
                os.write(self._messages, line)

    # -- children -----------------------------------------------------------------------------------------------------

    def _perform(self, steps: Iterator[Step]) -> None:
        """Do what the formation has decided."""
        for step in steps:
            match step:
                case Start(place=place, takes_over=takes_over):
                    self._start_worker(place, takes_over=takes_over)
                case Promote(pid=pid):
                    self._children[pid].kill_at = self._children[pid].up_at = None
                case Retire(pid=pid):
                    child = self._children[pid]
                    child.retired = True
                    if not child.tell("retire"):  # it does not listen
                        self._end(child)
                case End(pid=pid):
                    self._end(self._children[pid])
                case Say(text=text, level=level):
                    self._say(text, level)
                case GiveUp():
                    self._status = FAILED
                    self._stop()

    def _start_worker(self, place: Place, *, takes_over: bool) -> None:
        try:
            child = self._launch_worker(place)
        except OSError as error:  # no descriptor, process or memory to be had: that may pass
            reason, now = error.strerror or str(error), time.monotonic()
            self._perform(self._formation.not_started(place, reason, now, takes_over=takes_over))
            return
        if takes_over:
            child.kill_at = child.started + _START_WITHIN
            before = self._children.get(place.process or 0)
            if before is None or not before.serves:
                had_a_pool = before is not None and before.had_a_pool
                child.up_at = child.started + (_UP_WITHOUT_A_POOL if had_a_pool else UP_AFTER)
        self._watch(child)
        self._formation.started(place, child.pid, takes_over=takes_over)
        if self._systemd.due is not None and child.started >= self._systemd.due:
            self._systemd.alive()  # many of them take a while
        self._say_how_many_are_up(len(self._formation.staying), child.started)

    def _start_child(self, slot: Slot) -> None:
        try:
            child = self._launch_into(slot)
        except OSError as error:
            self._decide(slot, f"could not be started: {error.strerror or error}", 1, 0.0)
            return
        slot.child = child
        self._watch(child)
        if slot is self._observer:
            for dispatcher in self._dispatchers.values():
                self._show_jobs(dispatcher)

    def _watch(self, child: Child) -> None:
        self._children[child.pid] = child
        if child.control is not None:
            self._selector.register(child.control, selectors.EVENT_READ, lambda: self._on_message(child))
        if child.ready is not None:
            self._selector.register(child.ready, selectors.EVENT_READ, lambda: self._on_ready(child))

    def _launch_worker(self, place: Place) -> Child:
        name = f"worker {place.number}"
        spec = self._worker_spec(place)
        launched = self._launcher.launch(worker_main, spec, name=name, color=place.number, worker=place.number)
        return Child(name, launched.process, time.monotonic(), place, control=launched.control)

    def _launch_into(self, slot: Slot) -> Child:
        if slot is self._coordinator:
            before = (os.getpid(), self._coordinator_config(), self._plan.logs)
            launched = self._launcher.launch(coordinator_main, *before, name=slot.name, says_when_ready=True)
        else:
            spec, target = self._spec_of(slot)
            launched = self._launcher.launch(target, spec, name=slot.name)
        return Child(
            slot.name, launched.process, time.monotonic(), slot=slot, control=launched.control, ready=launched.ready
        )

    def _environment(self) -> dict[str, str]:
        """What workers and dispatchers have to know of the run."""
        plan = self._plan
        environment = self._settings | {
            "PYSQLX_RUN_ID": self._run_id,
            "PYSQLX_RUN_NAME": plan.name,
            "PYSQLX_LOG_FORMAT": plan.logs.format,
            "PYSQLX_LOG_LEVEL": plan.logs.levels,
        }
        if self._coordinator is not None:
            environment |= local(plan.directory).environment
        elif plan.coordinator is not None:
            environment["PYSQLX_COORDINATOR"] = plan.coordinator
        return environment

    def _worker_spec(self, place: Place) -> WorkerSpec:
        plan = self._plan
        environment = self._environment() | {
            "PYSQLX_WORKER_ID": str(place.number),
            "PYSQLX_WORKER_COUNT": str(len(self._formation.staying)),
            "PYSQLX_WORKER_RESTARTS": str(place.restarts),
            "PYSQLX_GRACEFUL_TIMEOUT": str(plan.graceful_timeout),
            # A worker that stays the only one dispatches its jobs itself.
            DIRECTORY: str(plan.directory.path) if self._shared_budget else "",
            MAX_JOBS: str(plan.max_jobs or ""),
            MAX_MEMORY: str(plan.max_memory or ""),
        }
        return WorkerSpec(
            place.number,
            os.getpid(),
            plan.target,
            environment,
            plan.uvloop,
            plan.script_open_files,
            plan.logs,
        )

    def _spec_of(self, slot: Slot) -> tuple[DispatcherSpec | ObserverSpec, Callable[..., None]]:
        if slot.queue is not None:
            return self._dispatcher_spec(slot, slot.queue), dispatcher_main
        assert self._plan.listening is not None
        spec = ObserverSpec(
            os.getpid(), self._plan.directory, self._plan.listening, self._environment(), self._plan.logs
        )
        return spec, observer_main

    def _dispatcher_spec(self, slot: Slot, queue: ServedQueue) -> DispatcherSpec:
        workers = {child.pid: child.serves[queue.socket] for child in self._workers() if queue.socket in child.serves}
        return DispatcherSpec(
            slot.name,
            os.getpid(),
            self._run_id,
            queue,
            self._environment(),
            workers,
            workers_died=slot.ended_at is not None and self._died_at > slot.ended_at - _DOUBT,
            restarted=slot.restarts > 0,
            uvloop=self._plan.uvloop,
            logs=self._plan.logs,
        )

    def _coordinator_config(self) -> CoordinatorConfig:
        from .coordinator import CoordinatorConfig  # ZeroMQ: only where it is used

        return CoordinatorConfig(
            directory=str(self._plan.directory.path),
            max_size=self._max_size,
            name=self._plan.name,
            bind=self._plan.bind,
            curve_keys=self._plan.curve_keys,
            term=self._plan.term,
        )

    def _on_ready(self, child: Child) -> None:
        """The coordinator listens, or has died, which is told elsewhere."""
        assert child.ready is not None
        self._selector.unregister(child.ready)
        try:
            child.ready.recv_bytes()
        except (EOFError, OSError):
            listens = False
        else:
            listens = True
        child.ready.close()
        child.ready = None
        if listens and not self._workers_started and not self._stopping:
            self._start_workers()

    def _on_message(self, child: Child) -> None:
        data = self._receive(child)
        if data:
            self._hear(child, data)

    def _receive(self, child: Child) -> bytes:
        """The next message of a worker, empty when there is none now."""
        if child.control is None:
            return b""
        try:
            data = child.control.recv(MESSAGE_LIMIT)
        except BlockingIOError:
            return b""
        except OSError:
            data = b""
        if not data:
            self._close_control(child)
        return data

    def _hear(self, child: Child, data: bytes) -> None:
        try:
            message: Message = _MESSAGE.decode(data)
        except (ValueError, RecursionError):  # the user's code runs in that process: nothing it sends may end us
            self._say(f"{child.name} sent something that is no message ({len(data)} bytes): ignored", logging.WARNING)
            return
        match message:
            case PoolStarted():
                self._any_had_a_pool = child.had_a_pool = True
                self._may_be_up(child)
            case Statistics():
                child.pools = message.pools
                self._counted.told(child.pid, message.pools)
                self._answer_if_complete()
            case BootFailure():
                self._on_boot_failure(child, message)
            case ServedQueue():
                child.serves[message.socket] += 1
                self._dispatch(message)
            case Retired():
                self._on_retired(child)
            case Recycle():
                self._perform(self._formation.recycle(child.pid, message.reason))
            case Serving():
                child.serving += 1
                self._may_be_up(child)

    def _dispatch(self, queue: ServedQueue) -> None:
        """See to it that a queue has a dispatcher."""
        if queue.socket in self._dispatchers or self._stopping:
            return
        number = f" {len(self._dispatchers) + 1}" if self._dispatchers else ""
        slot = Slot(f"dispatcher{number}", RestartPolicy("always"), queue=queue)
        self._dispatchers[queue.socket] = slot
        self._start_child(slot)
        self._show_jobs(slot)

    def _show_jobs(self, dispatcher: Slot) -> None:
        """Tell the observer in which database there are jobs."""
        queue = dispatcher.queue
        if self._observer is not None and self._observer.child is not None and queue is not None:
            self._observer.child.tell("queue", uri=queue.uri, max_size=queue.max_size, queues=[*queue.weights])

    def _may_be_up(self, child: Child) -> None:
        """Whether a worker that takes another one's place can do by now what that one does."""
        place = child.place
        if place is None or place.successor != child.pid or child.dead:
            return
        before = self._children.get(place.process or 0)
        queues = before.serves.total() if before is not None else 0
        if child.serving >= queues:
            self._is_up(child)

    def _is_up(self, child: Child) -> None:
        child.up_at = None
        self._perform(self._formation.up(child.pid))

    def _on_retired(self, child: Child) -> None:
        """Its jobs have ended: and now the rest of the script."""
        if child.retired and child.kill_at is None and not self._stopping:
            self._end(child)

    def _end(self, child: Child) -> None:
        child.kill_at, child.up_at = time.monotonic() + self._plan.graceful_timeout, None
        child.tell("drain")
        child.signal(signal.SIGTERM)

    def _on_boot_failure(self, child: Child, failure: BootFailure) -> None:
        place = child.place
        if (
            place is None
            or place.process != child.pid
            or self._formation.ever_reloaded
            or self._plan.watched is not None
        ):
            # Others go on, or it is mended by the next reload.
            self._say(f"{child.name}: {failure.error}", logging.ERROR)
            return
        # Once somebody had a pool, a server that cannot be reached is an outage: it ends.
        if failure.curable and (place.restarts > 0 or self._any_had_a_pool):
            self._say(f"{child.name}: {failure.error}", logging.ERROR)
        else:
            self._cannot_boot(failure.error)

    def _cannot_boot(self, error: str) -> None:
        if self._status != BOOT_FAILURE:  # once, not once per worker
            self._status = BOOT_FAILURE
            self._say(error, logging.ERROR)
            self._stop()

    def _on_deaths(self) -> None:
        for pid in self._deaths.dead():
            self._on_death(self._children[pid])

    def _on_death(self, child: Child) -> None:
        child.dead = True
        while data := self._receive(child):
            self._hear(child, data)  # its last words come first: they may be why it died
        pid, lived = child.pid, time.monotonic() - child.started
        self._counted.ended(pid)
        status = self._bury(child)
        how, now = describe_exit(status), time.monotonic()
        if child.place is not None:
            if status:
                self._died_at = now
            for dispatcher in self._dispatchers.values():
                if dispatcher.child is not None:
                    dispatcher.child.tell("died", pid=pid, how=_as_a_reason(status), well=status == 0)
            self._perform(self._formation.ended(pid, how, status, lived, now))
        else:
            assert child.slot is not None
            self._slot_is_empty(child.slot, how, status, lived)
        self._answer_if_complete()  # it was perhaps the last that we waited for

    def _slot_is_empty(self, slot: Slot, how: str, status: int, lived: float) -> None:
        replaced = slot.child is not None and slot.child.retired
        slot.child, slot.ended_at = None, time.monotonic()
        if self._stopping:
            if slot.queue is not None and self._workers():  # who still report to it
                self._decide(slot, how, status, lived)
        elif slot is self._coordinator and not self._workers_started and status > 0:
            self._cannot_boot(f"the coordinator could not start: it {how}")
        elif replaced:
            self._start_child(slot)
        else:
            self._decide(slot, how, status, lived)

    def _decide(self, slot: Slot, how: str, status: int, lived: float) -> None:
        decision = slot.policy.died(status, lived)
        if decision.verdict is Verdict.RESTART:
            slot.restart_at = time.monotonic() + decision.delay
            self._say(f"{slot.name} {how}; starting it again in {decision.delay:.1f} s", logging.WARNING)
        elif decision.verdict is Verdict.GIVE_UP and slot is self._observer:
            assert self._plan.listening is not None
            self._plan.listening.close()
            self._say(f"{slot.name} {how}, {too_often()}; the workers go on without it", logging.ERROR)
        elif decision.verdict is Verdict.GIVE_UP:
            self._status = FAILED
            self._say(f"{slot.name} {how}, {too_often()}", logging.ERROR)
            self._stop()

    def _bury(self, child: Child) -> int:
        """Reap a dead child and close what we had of it. Returns its status, negative for a signal."""
        pid = child.pid
        status = reap(child.process)
        child.process.close()
        self._deaths.forget(pid)
        self._close_control(child)
        if child.ready is not None:
            self._selector.unregister(child.ready)
            child.ready.close()
        del self._children[pid]
        return status

    def _close_control(self, child: Child) -> None:
        if child.control is not None:
            self._selector.unregister(child.control)
            child.control.close()
            child.control = None

    # -- the end ------------------------------------------------------------------------------------------------------

    def _stop(self) -> None:
        """Drain: workers end by themselves, or are killed after the graceful timeout."""
        self._stdout.hurry()
        self._stderr.hurry()
        if self._stopping:
            return
        self._stopping = True
        self._draining, self._to_drain = Progress(time.monotonic()), len(self._workers())
        self._kill_at = time.monotonic() + self._plan.graceful_timeout
        self._formation.stop()
        if self._coordinator is not None:  # not the dispatchers, to which the workers still report
            self._coordinator.restart_at = None
        for child in self._workers():
            child.kill_at = child.up_at = None  # there is one time for all now
            child.tell("drain")
            child.signal(signal.SIGTERM)

    def _wind_down(self) -> None:
        """When the last worker has ended: end the dispatchers, and when the last of those has ended, the coordinator:
        each served those before it until then."""
        if not self._formation.over:
            return
        if not self._workers_started and not self._stopping:
            return
        self._stopping = True
        self._formation.stop()
        for slot in self._slots():
            slot.restart_at = None
        for child in self._next_to_end():
            if not child.told_to_end:
                child.told_to_end = True
                child.signal(signal.SIGTERM)
                self._kill_at = time.monotonic() + _COORDINATOR_GRACE

    def _next_to_end(self) -> list[Child]:
        """The workers, when they have ended the dispatchers and the observer, and then the coordinator."""
        slots = [slot for slot in self._slots() if slot is not self._coordinator]
        return (
            self._workers() or [slot.child for slot in slots if slot.child is not None] or list(self._children.values())
        )

    def _kill_after_grace(self) -> None:
        late = self._next_to_end()
        for child in late:
            self._say(f"{child.name} has not ended in time: killing it", logging.WARNING)
        self._kill(late)

    def _kill(self, children: list[Child]) -> None:
        self._kill_at = None
        for child in children:
            if self._status == DONE and (child.slot is None or child.slot is not self._observer):
                self._status = FAILED
            kill_group(child.pid)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Those that we obey come into the loop, except those that we were started to ignore."""
        reader, writer = nonblocking_pipe()
        before = {number: signal.getsignal(number) for number in CHILD_SIGNALS | STEERING_SIGNALS}
        previous = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        self._selector.register(reader, selectors.EVENT_READ, lambda: self._on_signals(os.read(reader, 1024)))
        for number, handler in before.items():
            if handler != signal.SIG_IGN:
                signal.signal(number, _leave_it_to_the_loop)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STEERING_SIGNALS)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, STEERING_SIGNALS)  # it is too late for them
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(previous)
            self._selector.unregister(reader)
            os.close(reader)
            os.close(writer)

    def _on_signals(self, numbers: bytes) -> None:
        ends = {number for number in numbers if number in CHILD_SIGNALS}
        if signal.SIGHUP in numbers and self._lost_its_terminal():
            ends.add(signal.SIGHUP)
        if ends:
            self._told_to_stop = True
            self._interrupts += numbers.count(signal.SIGINT)
            self._stop()
            if self._interrupts > 1 or signal.SIGQUIT in numbers:
                self._kill(list(self._children.values()))
            return
        for number in numbers:
            match number:
                case signal.SIGHUP:
                    self._take_order(self._reload)
                case signal.SIGTTIN:
                    self._take_order(lambda: self._scale(len(self._formation.expected) + 1))
                case signal.SIGTTOU:
                    self._take_order(lambda: self._scale(len(self._formation.expected) - 1))
                case signal.SIGUSR1:
                    self._take_order(self._reopen_log)
                case signal.SIGUSR2:
                    self._dump()

    # -- what people tell us while we run -----------------------------------------------------------------------------

    def _check_that_it_runs(self) -> None:
        if self._stopping:
            raise _RefusedOrder("the run is ending")
        if not self._workers_started:
            raise _RefusedOrder("the run is still starting")

    def _take_order(self, order: Callable[[], object]) -> None:
        """Of a signal, which gets no answer."""
        try:
            order()
        except _RefusedOrder as error:
            self._say(str(error), logging.WARNING)

    def _lost_its_terminal(self) -> bool:
        """Whether a HUP says that our terminal is gone, and not that somebody wants a reload."""
        return self._had_terminal and not _has_terminal()

    def _reload(self) -> int:
        """Replace the workers by others, with what the script and the settings file say now."""
        self._check_that_it_runs()
        with contextlib.suppress(_RefusedOrder):  # then some have to wait until others have ended
            self._allow_open_files(2 * len(self._formation.expected))
        before = self._settings
        try:
            self._settings = self._plan.environment()
        except SettingsError as error:
            raise _RefusedOrder(f"nothing is reloaded: {error}") from None
        self._systemd.reloading()
        self._perform(self._formation.reload())
        if self._settings != before and self._observer is not None and self._observer.child is not None:
            self._replace_observer(self._observer.child)
        return len(self._formation.staying)

    def _replace_observer(self, child: Child) -> None:
        """By one that knows the settings as they are now."""
        self._say("the settings have changed: another observer takes the place of this one")
        child.retired = True
        child.kill_at = time.monotonic() + _OBSERVER_GRACE
        child.signal(signal.SIGTERM)

    def _allow_open_files(self, workers: int) -> None:
        needed = self._plan.open_files_of(workers)
        hard = allow_open_files(needed)
        if hard is not None:
            raise _RefusedOrder(f"{workers} workers need {needed} open files, and the hard limit is {hard}")

    def _scale(self, workers: int) -> int:
        self._check_that_it_runs()
        if not self._shared_budget:
            raise _RefusedOrder(
                "this run has one worker and no coordinator, so that a second one would have a budget of its own: "
                "start it with --coordinator, or with more workers"
            )
        if not 1 <= workers <= MOST_WORKERS:
            raise _RefusedOrder(f"{workers} workers: it has to be from 1 to {MOST_WORKERS}; TERM ends the run")
        self._allow_open_files(workers)
        before = len(self._formation.expected)
        if workers != before:
            self._say(f"{workers} workers from now on, where there were {before}")
        self._perform(self._formation.scale(workers))
        return workers

    def _drain(self, number: int) -> int:
        self._check_that_it_runs()
        place = self._formation.places.get(number)
        if place is None or place.leaving:
            known = ", ".join(str(place.number) for place in self._formation.staying)
            raise _RefusedOrder(f"there is no worker {number}; there are {known}")
        if [place.number for place in self._formation.expected] == [number]:
            raise _RefusedOrder(f"worker {number} is the only one: TERM ends the run")
        self._say(f"worker {number} ends, and nobody takes its place")
        self._perform(self._formation.leave(number))
        return number

    def _reopen_log(self) -> None:
        if self._plan.log_file is None:
            raise _RefusedOrder("USR1: there is no log file to open anew, see --log-file")
        try:
            log_to(self._plan.log_file)
        except OSError as error:
            raise _RefusedOrder(
                f"cannot open {self._plan.log_file}: {error.strerror}; going on with the old one"
            ) from None

    def _dump(self) -> None:
        """Everybody's state to the log."""
        now = time.monotonic()
        self._say(f"state of the run {self._plan.name}: {len(self._formation.staying)} workers", asked=True)
        for child in self._children.values():
            place = self._formation.place_of(child.pid)
            what = (
                ""
                if place is None or place.process == child.pid
                else (", takes over" if place.successor == child.pid else ", ends")
            )
            self._say(f"  {child.name} ({child.pid}): since {now - child.started:.1f} s{what}", asked=True)
            if child.slot is None or child.slot is not self._coordinator:
                child.tell("dump")
            elif child.ready is None:  # before that it has no handler
                child.signal(signal.SIGUSR2)
        for place in self._formation.places.values():
            if place.restart_at is not None:
                again = max(0.0, place.restart_at - now)
                self._say(f"  worker {place.number}: starts again in {again:.1f} s", asked=True)

    @contextlib.contextmanager
    def _file_watch(self) -> Iterator[None]:
        if self._plan.watched is None:
            yield
            return
        from .watching import FileWatch

        with contextlib.closing(FileWatch(self._plan.watched, self._plan.watched_too)) as files:
            self._selector.register(files, selectors.EVENT_READ, lambda: self._on_change(files.changed()))
            yield
            self._selector.unregister(files)

    def _on_change(self, names: list[str]) -> None:
        if not names:
            return
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        self._say(f"{os.path.basename(names[0])}{more} has changed")
        self._take_order(self._reload)

    # -- pysqlx-ctl ---------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _control_server(self) -> Iterator[None]:
        """Orders, and, when we have no coordinator that could be asked, questions."""
        from .control import ControlServer

        paths = [self._plan.directory.supervisor]
        if self._coordinator is None:
            paths.append(self._plan.directory.control)
        with contextlib.ExitStack() as servers:
            for path in paths:
                server = servers.enter_context(contextlib.closing(ControlServer(path, self._on_question)))
                self._selector.register(server, selectors.EVENT_READ, server.handle_readable)
                servers.callback(self._selector.unregister, server)
            yield

    def _on_question(self, question: Json, reply: Reply) -> None:
        from .control import SIZES, wrong_size

        try:
            match question:
                case {"op": "status"}:
                    self._ask_workers(reply)
                case {"op": "health"}:
                    reply(msgspec.to_builtins(self._health(time.monotonic())))
                case {"op": "crew"}:
                    reply(msgspec.to_builtins(self._crew(time.monotonic())))
                case {"op": "reload"}:
                    reply({"workers": self._reload()})
                case {"op": "scale", "workers": int(workers)}:
                    reply({"workers": self._scale(workers)})
                case {"op": "drain", "worker": int(number)}:
                    reply({"worker": self._drain(number)})
                case {"op": "resize", "size": int(size)} if self._coordinator is not None and size in SIZES:
                    self._max_size = size  # of the next coordinator, if this one dies; it has been told itself
                    reply({"size": size})
                case {"op": "resize", "size": int(size)} if size not in SIZES:
                    raise _RefusedOrder(wrong_size(size))
                case {"op": "resize" | "recall"}:
                    where = self._plan.coordinator
                    raise _RefusedOrder(
                        f"the budget is that of the coordinator at {where}: say it there"
                        if where is not None
                        else "this run has no coordinator: its pools have budgets of their own"
                    )
                case _:
                    raise _RefusedOrder(f"unknown question {question!r}")
        except _RefusedOrder as error:
            reply({"error": str(error)})

    def _ask_workers(self, reply: Reply) -> None:
        self._questions.append(reply)
        if self._answer_by is None:
            self._answer_by = time.monotonic() + _STATS_TIMEOUT
            for child in self._workers():
                child.pools = None
                child.tell("stats")
        self._answer_if_complete()

    def _answer_if_complete(self) -> None:
        if self._questions and all(child.pools is not None for child in self._workers()):
            self._answer()

    def _answer(self) -> None:
        """Answer every open question. A worker that has not told its pools is shown without any: something holds its
        interpreter up."""
        self._answer_by = None
        status = msgspec.to_builtins(self.status())
        for reply in self._questions:
            reply(status)
        self._questions.clear()

    def _workers(self) -> list[Child]:
        return [child for child in self._children.values() if child.place is not None]

    def status(self) -> RunStatus:
        """The run as `pysqlx-ctl status` shows it, from what its workers have told of their pools."""
        now = time.monotonic()
        return status_of(self._plan.name, self._workers(), self._counted, self._health(now), now)


def _as_a_reason(status: int) -> str:
    """How a worker ended, for the jobs that it ran."""
    memory = ", perhaps out of memory" if status == -signal.SIGKILL else ""
    return f"its worker {describe_exit(status)}{memory}"


def _has_terminal() -> bool:
    """Whether there is a terminal that could hang up."""
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _leave_it_to_the_loop(number: int, frame: types.FrameType | None) -> None:
    """The interpreter has written the number into the wake-up pipe already."""
