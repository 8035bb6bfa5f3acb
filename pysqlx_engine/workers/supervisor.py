"""The supervisor: starts the coordinator and the workers, restarts what dies, passes signals on, ends with a status.

One loop, one dictionary of children. Signal handlers do nothing: the interpreter writes the signal's number into a pipe
that the loop reads. Deaths arrive as pidfds in the same selector, so nothing polls. What to do about a death is decided
by `RestartPolicy`, which knows no processes and no clock.
"""

from __future__ import annotations

import contextlib
import enum
import json
import os
import random
import secrets
import selectors
import signal
import socket
import sys
import time
import types
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Literal

import msgspec
import multiprocess
from multiprocess import resource_tracker
from multiprocess.process import _children as reaped_by_multiprocess
from setproctitle import setproctitle

from .jobs.served import DIRECTORY, MAX_JOBS, MAX_MEMORY, DispatcherSpec, Recycle, Retired, ServedQueue, Serving
from .output import Pump, line_prefix
from .process import CHILD_SIGNALS, coordinator_main, describe_exit, dispatcher_main, kill_group
from .rundir import RunDirectory
from .worker import BOOT_FAILURE, MESSAGE_LIMIT, BootFailure, Message, PoolStarted, Statistics, Target, WorkerSpec
from .worker import main as worker_main

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

    from ..pool import PoolStats
    from .control import Json, Reply
    from .coordinator import CoordinatorConfig

__all__ = ["DONE", "FAILED", "Decision", "RestartPolicy", "RunPlan", "Supervisor", "Verdict"]

DONE = 0
FAILED = 1

Restart = Literal["never", "on-failure", "always"]

_COORDINATOR_GRACE = 5.0  # seconds for a coordinator to end: it has nothing to wait for
_DISPATCHERS = 2  # that a run is expected to have: one for each queue that it serves
_DOUBT = 2.0  # seconds after a worker's death in which a dispatcher that dies may not have seen to its jobs
_START_WITHIN = 60.0  # seconds for a worker that takes another one's place to serve
_STATS_TIMEOUT = 1.0  # seconds for a worker to answer
_OPEN_FILES = 32  # of the supervisor itself, with those that a child has until it is started
_LOOK_AGAIN = 3600.0  # seconds: the kernel takes no more than some weeks
_OUTPUT_GRACE = 1.0  # seconds for the last lines, when we were told to stop and nobody reads them

_MESSAGE = msgspec.json.Decoder(Message)


class Verdict(enum.Enum):
    FINISHED = "finished"
    RESTART = "restart"
    GIVE_UP = "give up"


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do about a child that died. `delay` in seconds, for a restart."""

    verdict: Verdict
    delay: float = 0.0


class RestartPolicy:
    """Whether and when one child is started again.

    A child that fails within `EARLY` seconds of its start died early. Each early death in a row doubles the delay
    before the next start; `LIMIT` of them in a row, and it is given up. A child that lived longer starts afresh. The
    jitter keeps workers that died together from coming back together.
    """

    FIRST_DELAY = 0.1
    EARLY = 60.0
    LIMIT = 10
    JITTER = 0.25

    def __init__(self, mode: Restart, jitter: Callable[[], float] = random.random) -> None:
        """`jitter` gives a number from 0 to 1; a delay is shortened by up to a quarter of itself."""
        self._mode = mode
        self._jitter = jitter
        self._early_deaths = 0

    def died(self, status: int, lived: float) -> Decision:
        """Decide on a child that ended with `status` (negative: the signal that ended it) after `lived` seconds."""
        if self._mode == "never" or (status == 0 and self._mode == "on-failure"):
            return Decision(Verdict.FINISHED)
        if status == 0:
            self._early_deaths = 0
            return Decision(Verdict.RESTART, self._delay(0))
        self._early_deaths = self._early_deaths + 1 if lived < self.EARLY else 1
        if self._early_deaths >= self.LIMIT:
            return Decision(Verdict.GIVE_UP)
        return Decision(Verdict.RESTART, self._delay(self._early_deaths - 1))

    def _delay(self, doublings: int) -> float:
        return float(self.FIRST_DELAY * 2**doublings * (1 - self.JITTER * self._jitter()))


@dataclass(frozen=True, slots=True)
class RunPlan:
    """What a run consists of. Times in seconds."""

    name: str
    target: Target
    workers: int
    restart: Restart
    graceful_timeout: float
    prefix: bool
    uvloop: bool
    max_size: int | None
    coordinator: str | None
    """The address of a coordinator to join."""
    start_coordinator: bool
    bind: str | None
    curve_keys: str | None
    term: float
    max_jobs: int | None
    """Jobs after which a worker is replaced."""
    max_memory: int | None
    """MiB that a worker may have before it is replaced."""
    directory: RunDirectory
    script_open_files: int
    """How many files a script may have open (RLIMIT_NOFILE), whatever we need ourselves."""
    environment: dict[str, str] = field(default_factory=dict, repr=False)
    """What the workers get besides our own environment. It may hold a password."""

    @property
    def open_files(self) -> int:
        """How many files the supervisor may have open at once."""
        per_child = 6 if self.prefix else 4  # pidfd, control, two of multiprocess, and two that we copy from
        workers = self.workers if self.max_jobs is None and self.max_memory is None else 2 * self.workers
        return _OPEN_FILES + per_child * (workers + self.start_coordinator + _DISPATCHERS)


@dataclass(slots=True)
class _Slot:
    """A place for a child: a worker's number, the coordinator, or a queue's dispatcher. It stays while its children
    come and go."""

    name: str
    policy: RestartPolicy
    color: int
    number: int | None = None  # of a worker
    queue: ServedQueue | None = None  # of a dispatcher
    child: _Child | None = None
    successor: _Child | None = None  # of a worker that is to be replaced: it starts, and does not serve yet
    restarts: int = 0
    restart_at: float | None = None
    failed: bool = False  # the last child ended badly
    ended_at: float | None = None  # when the last child did


@dataclass(slots=True)
class _Child:
    slot: _Slot
    process: SpawnProcess
    pidfd: int
    started: float
    control: socket.socket | None = None  # all but the coordinator have one
    ready: Connection | None = None  # the coordinator's, until it has said so
    pools: list[PoolStats] | None = None  # its answer to the question that is open
    retired: bool = False  # told to end, because another one takes its place
    kill_at: float | None = None
    serves: Counter[str] = field(default_factory=Counter)  # its queues, by their sockets

    @property
    def pid(self) -> int:
        return int(self.process.pid or 0)

    def signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.pidfd, number)

    def tell(self, operation: str, **more: object) -> None:
        if self.control is not None:
            with contextlib.suppress(OSError):  # dead, or not reading: then the signal has to do
                self.control.send(json.dumps({"op": operation, **more}).encode())


class Supervisor:
    """Runs a plan. Use it once, from the main thread of a process that does nothing else."""

    def __init__(self, plan: RunPlan) -> None:
        self._plan = plan
        self._run_id = secrets.token_hex(4)
        self._context = multiprocess.get_context("spawn")
        self._selector = selectors.DefaultSelector()
        self._slots: list[_Slot] = [
            _Slot(f"worker {number}", RestartPolicy(plan.restart), number, number=number)
            for number in range(plan.workers)
        ]
        self._coordinator: _Slot | None = None
        if plan.start_coordinator:
            self._coordinator = _Slot("coordinator", RestartPolicy("always"), -1)
        self._dispatchers: dict[str, _Slot] = {}  # by the socket of their queue
        self._died_at = 0.0  # when a worker has died last
        self._children: dict[int, _Child] = {}  # by pid
        self._workers_started = False
        self._any_had_a_pool = False
        self._stopping = False  # nothing is started any more
        self._told_to_stop = False
        self._interrupts = 0
        self._kill_at: float | None = None
        self._status = DONE
        self._questions: list[Reply] = []
        self._answer_by: float | None = None
        self._stdout = Pump(1)
        self._stderr = Pump(2)
        messages, self._messages = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._stderr.add(messages, b"pysqlx-run: ")

    # -- the loop -----------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Run the plan to its end. Returns the exit status: 0 done, 1 a script failed, 3 boot failure."""
        setproctitle(f"pysqlx-run: supervisor {self._plan.name}")
        try:
            with self._signals(), self._control_server():
                self._start()
                while self._children or self._restarts_pending():
                    self._step()
        finally:
            for child in self._children.values():  # only after an error of our own
                kill_group(child.pid)
            os.close(self._messages)
            grace = _OUTPUT_GRACE if self._told_to_stop else None
            self._stderr.close(grace)
            self._stdout.close(grace)
        if self._status == DONE and any(slot.failed for slot in self._slots):
            return FAILED
        return self._status

    def _start(self) -> None:
        # Started by somebody who ignores CHLD, so do we, and so would our children: the kernel would then reap whoever
        # ends before we can ask how.
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        # The tracker unblocks signals when it starts: it must not do so while we start a child with signals blocked.
        resource_tracker.ensure_running()
        if self._coordinator is None:
            self._start_workers()
        else:
            self._start_child(self._coordinator)

    def _start_workers(self) -> None:
        self._workers_started = True
        for slot in self._slots:
            self._start_child(slot)
        self._wind_down()  # if none could be started, no death will tell

    def _restarts_pending(self) -> bool:
        return any(slot.restart_at is not None for slot in self._all_slots())

    def _all_slots(self) -> Iterator[_Slot]:
        if self._coordinator is not None:
            yield self._coordinator
        yield from self._dispatchers.values()
        yield from self._slots

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
                child.kill_at = None
                self._say(f"{child.slot.name} ({child.pid}) has not ended in time: killing it")
                kill_group(child.pid)
        if self._answer_by is not None and now >= self._answer_by:
            self._answer()
        for slot in self._all_slots():
            if slot.restart_at is not None and now >= slot.restart_at:
                slot.restart_at = None
                slot.restarts += 1
                self._start_child(slot)
                self._wind_down()

    def _time_to_wait(self) -> float | None:
        moments = [slot.restart_at for slot in self._all_slots() if slot.restart_at is not None]
        moments += [child.kill_at for child in self._children.values() if child.kill_at is not None]
        moments += [moment for moment in (self._kill_at, self._answer_by) if moment is not None]
        return min(_LOOK_AGAIN, max(0.0, min(moments) - time.monotonic())) if moments else None

    def _say(self, text: str) -> None:
        """A line of our own on stderr. It is dropped rather than waited for when nobody reads them."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._messages, text.encode(errors="replace") + b"\n")

    # -- children -----------------------------------------------------------------------------------------------------

    def _start_child(self, slot: _Slot) -> None:
        try:
            child = self._launch(slot)
        except OSError as error:  # no descriptor, process or memory to be had: that may pass
            self._decide(slot, f"could not be started: {error.strerror or error}", 1, 0.0)
            return
        slot.child = child
        slot.failed = False
        self._watch(child)

    def _watch(self, child: _Child) -> None:
        self._children[child.pid] = child
        self._selector.register(child.pidfd, selectors.EVENT_READ, lambda: self._on_death(child))
        if child.control is not None:
            self._selector.register(child.control, selectors.EVENT_READ, lambda: self._on_message(child))
        if child.ready is not None:
            self._selector.register(child.ready, selectors.EVENT_READ, lambda: self._on_ready(child))

    def _launch(self, slot: _Slot) -> _Child:
        """Start a process. Raises OSError, and has left nothing behind then, when the system does not let us."""
        control = ready = None
        arguments: tuple[object, ...]
        # The child's ends of its pipes, which we close once it has them; and ours, which stay if it was started.
        with contextlib.ExitStack() as its_ends, contextlib.ExitStack() as our_ends:
            stdout, stderr = self._output_pipes(slot, its_ends)
            if slot is self._coordinator:
                ready, child_ready = self._context.Pipe(duplex=False)
                our_ends.callback(ready.close)
                its_ends.callback(child_ready.close)
                arguments = (os.getpid(), self._coordinator_config(), child_ready, stdout, stderr)
                process = self._context.Process(target=coordinator_main, args=arguments, name=slot.name)
            else:
                # Datagrams in order: one message, one piece, and a send never blocks.
                control, child_control = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
                our_ends.callback(control.close)
                its_ends.callback(child_control.close)
                control.setblocking(False)
                spec, target = (
                    (self._worker_spec(slot), worker_main)
                    if slot.queue is None
                    else (self._dispatcher_spec(slot, slot.queue), dispatcher_main)
                )
                arguments = (spec, child_control, stdout, stderr)
                process = self._context.Process(target=target, args=arguments, name=slot.name)
            with _hidden_main_module(), _blocked(CHILD_SIGNALS):
                process.start()
            # With each start it reaps whoever has ended meanwhile, and there is no other way to tell it not to. We
            # reap: a death that was reaped elsewhere cannot be looked at any more, and the pid may be somebody else's.
            reaped_by_multiprocess.discard(process)
            try:
                pidfd = os.pidfd_open(process.pid)
            except OSError:  # nobody would tell us when it ends
                kill_group(process.pid)
                process.join()
                process.close()
                raise
            our_ends.pop_all()
        return _Child(slot, process, pidfd, time.monotonic(), control=control, ready=ready)

    def _output_pipes(self, slot: _Slot, its_ends: contextlib.ExitStack) -> tuple[Connection | None, Connection | None]:
        if not self._plan.prefix:
            return None, None
        ends = []
        for pump, destination in ((self._stdout, 1), (self._stderr, 2)):
            reader, writer = self._context.Pipe(duplex=False)
            its_ends.callback(writer.close)
            with reader:
                pump.add(os.dup(reader.fileno()), line_prefix(slot.name, slot.color, destination, os.environ))
            ends.append(writer)
        return ends[0], ends[1]

    def _environment(self) -> dict[str, str]:
        """What workers and dispatchers have to know of the run."""
        plan = self._plan
        environment = plan.environment | {"PYSQLX_RUN_ID": self._run_id, "PYSQLX_RUN_NAME": plan.name}
        address = plan.coordinator
        if self._coordinator is not None:
            address = f"ipc://{plan.directory.socket}"
        if address is not None:
            environment["PYSQLX_COORDINATOR"] = address
        return environment

    def _worker_spec(self, slot: _Slot) -> WorkerSpec:
        plan = self._plan
        environment = self._environment() | {
            "PYSQLX_WORKER_ID": str(slot.number),
            "PYSQLX_WORKER_COUNT": str(plan.workers),
            "PYSQLX_WORKER_RESTARTS": str(slot.restarts),
            "PYSQLX_GRACEFUL_TIMEOUT": str(plan.graceful_timeout),
            # A worker that is the only one dispatches its jobs itself.
            DIRECTORY: str(plan.directory.path) if plan.workers > 1 else "",
            MAX_JOBS: str(plan.max_jobs or ""),
            MAX_MEMORY: str(plan.max_memory or ""),
        }
        return WorkerSpec(
            f"pysqlx-run: {slot.name}", os.getpid(), plan.target, environment, plan.uvloop, plan.script_open_files
        )

    def _dispatcher_spec(self, slot: _Slot, queue: ServedQueue) -> DispatcherSpec:
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
        )

    def _coordinator_config(self) -> CoordinatorConfig:
        from .coordinator import CoordinatorConfig  # ZeroMQ: only where it is used

        return CoordinatorConfig(
            directory=str(self._plan.directory.path),
            max_size=self._plan.max_size,
            name=self._plan.name,
            bind=self._plan.bind,
            curve_keys=self._plan.curve_keys,
            term=self._plan.term,
        )

    def _on_ready(self, child: _Child) -> None:
        """The coordinator listens, or has died: its death is told by its pidfd."""
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

    def _on_message(self, child: _Child) -> None:
        data = self._receive(child)
        if data:
            self._hear(child, data)

    def _receive(self, child: _Child) -> bytes:
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

    def _hear(self, child: _Child, data: bytes) -> None:
        try:
            message: Message = _MESSAGE.decode(data)
        except (ValueError, RecursionError):  # the user's code runs in that process: nothing it sends may end us
            self._say(f"{child.slot.name} sent something that is no message ({len(data)} bytes): ignored")
            return
        match message:
            case PoolStarted():
                self._any_had_a_pool = True
            case Statistics():
                child.pools = message.pools
                self._answer_if_complete()
            case BootFailure():
                self._on_boot_failure(child, message)
            case ServedQueue():
                child.serves[message.socket] += 1
                self._dispatch(message)
            case Retired():
                self._on_retired(child)
            case Recycle():
                self._recycle(child, message.reason)
            case Serving():
                self._on_serving(child)

    def _dispatch(self, queue: ServedQueue) -> None:
        """See to it that a queue has a dispatcher."""
        if queue.socket in self._dispatchers or self._stopping:
            return
        number = f" {len(self._dispatchers) + 1}" if self._dispatchers else ""
        slot = _Slot(f"dispatcher{number}", RestartPolicy("always"), -1, queue=queue)
        self._dispatchers[queue.socket] = slot
        self._start_child(slot)

    # A worker asks to be replaced. Where its budget is everybody's, the new one is up before it goes; where a worker
    # has a budget of its own, two of them would have two budgets.

    def _recycle(self, child: _Child, reason: str) -> None:
        slot = child.slot
        if self._stopping or slot.child is not child or slot.successor is not None or child.retired:
            return
        if any(other.retired for other in self._workers() if other.slot is slot):
            return  # the one before it has not ended its last job: it will ask again
        self._say(f"{slot.name} {reason}: another one takes its place")
        if self._coordinator is None and self._plan.coordinator is None:
            self._retire(child)
            return
        try:
            slot.successor = self._launch(slot)
        except OSError as error:  # that may pass: it will ask again
            self._say(f"{slot.name}: the other one could not be started: {error.strerror or error}")
            return
        slot.successor.kill_at = time.monotonic() + _START_WITHIN
        self._watch(slot.successor)

    def _on_serving(self, child: _Child) -> None:
        slot = child.slot
        if slot.successor is child:
            slot.successor, before, slot.child = None, slot.child, child
            child.kill_at = None
            if before is not None:
                self._retire(before)

    def _retire(self, child: _Child) -> None:
        child.retired = True
        child.tell("retire")

    def _on_retired(self, child: _Child) -> None:
        """Its jobs have ended: and now the rest of the script."""
        if child.retired and not self._stopping:
            child.kill_at = time.monotonic() + self._plan.graceful_timeout
            child.tell("drain")
            child.signal(signal.SIGTERM)

    def _on_boot_failure(self, child: _Child, failure: BootFailure) -> None:
        slot = child.slot
        if slot.successor is child:  # the one that it was to replace goes on
            self._say(f"{slot.name}: {failure.error}")
            return
        # Once somebody had a pool, a server that cannot be reached is an outage: it ends.
        if failure.curable and (slot.restarts > 0 or self._any_had_a_pool):
            self._say(f"{slot.name}: {failure.error}")
        else:
            self._cannot_boot(failure.error)

    def _cannot_boot(self, error: str) -> None:
        if self._status != BOOT_FAILURE:  # once, not once per worker
            self._status = BOOT_FAILURE
            self._say(error)
            self._stop()

    def _on_death(self, child: _Child) -> None:
        while data := self._receive(child):
            self._hear(child, data)  # its last words come first: they may be why it died
        pid, status = child.pid, self._bury(child)
        slot = child.slot
        slot.ended_at = time.monotonic()
        if slot.number is not None:
            if status:
                self._died_at = time.monotonic()
            for dispatcher in self._dispatchers.values():
                if dispatcher.child is not None:
                    dispatcher.child.tell("died", pid=pid, how=_as_a_reason(status), well=status == 0)
        if self._stopping:
            slot.failed = slot.failed or status not in (0, -signal.SIGTERM)
            if slot.queue is not None and self._workers():  # who still report to it
                self._decide(slot, describe_exit(status), status, time.monotonic() - child.started)
        elif slot.successor is child:
            slot.successor = None
            self._say(f"{slot.name}: the other one {describe_exit(status)} before it served")
        elif slot.child is not child:  # it was replaced
            if status:
                self._say(f"{slot.name} ({pid}) {describe_exit(status)}")
        elif slot.successor is not None or child.retired:
            if status and not child.retired:
                self._say(f"{slot.name} ({pid}) {describe_exit(status)}")
            slot.child, slot.successor = slot.successor, None
            if slot.child is None:
                self._start_child(slot)
            else:
                slot.child.kill_at = None  # it takes nobody's place any more
        elif slot is self._coordinator and not self._workers_started and status > 0:
            self._cannot_boot(f"the coordinator could not start: it {describe_exit(status)}")
        else:
            self._decide(slot, describe_exit(status), status, time.monotonic() - child.started)
        if slot.child is child:
            slot.child = None
        self._wind_down()
        self._answer_if_complete()  # it was perhaps the last that we waited for

    def _decide(self, slot: _Slot, end: str, status: int, lived: float) -> None:
        """What comes after `end`: how the child ended, in words."""
        slot.failed = status != 0
        decision = slot.policy.died(status, lived)
        if decision.verdict is Verdict.RESTART:
            slot.restart_at = time.monotonic() + decision.delay
            self._say(f"{slot.name} {end}; starting it again in {decision.delay:.1f} s")
        elif decision.verdict is Verdict.GIVE_UP:
            self._status = FAILED
            self._say(
                f"{slot.name} {end}, the {RestartPolicy.LIMIT}th failure in a row within "
                f"{RestartPolicy.EARLY:.0f} s of a start; giving up"
            )
            self._stop()
        elif slot.failed:
            self._say(f"{slot.name} {end}")

    def _bury(self, child: _Child) -> int:
        """Reap a dead child and close what we had of it. Returns its status, negative for a signal."""
        end = os.waitid(os.P_PIDFD, child.pidfd, os.WEXITED | os.WNOWAIT)
        if end is not None and end.si_code != os.CLD_EXITED:
            # What a killed worker had started would never be told. Until it is reaped nobody else can have its number.
            kill_group(child.pid)
        child.process.join()
        status = child.process.exitcode
        child.process.close()
        self._selector.unregister(child.pidfd)
        os.close(child.pidfd)
        self._close_control(child)
        if child.ready is not None:
            self._selector.unregister(child.ready)
            child.ready.close()
        del self._children[end.si_pid if end is not None else child.pid]
        return int(status or 0)

    def _close_control(self, child: _Child) -> None:
        if child.control is not None:
            self._selector.unregister(child.control)
            child.control.close()
            child.control = None

    # -- the end ------------------------------------------------------------------------------------------------------

    def _stop(self) -> None:
        """Drain: workers end by themselves, or are killed after the graceful timeout."""
        if self._stopping:
            return
        self._stopping = True
        self._kill_at = time.monotonic() + self._plan.graceful_timeout
        self._stdout.hurry()
        self._stderr.hurry()
        for slot in self._all_slots():
            if slot.restart_at is not None and slot.queue is None:  # whose dispatcher the workers still report to
                slot.restart_at, slot.failed = None, False  # its next child would have made up for the last
        for child in self._workers():
            child.tell("drain")
            child.signal(signal.SIGTERM)
        self._wind_down()

    def _wind_down(self) -> None:
        """When the last worker has ended: end the dispatchers, and when the last of those has ended, the coordinator:
        each served those before it until then."""
        if self._workers() or any(slot.restart_at is not None for slot in self._slots):
            return
        if not self._workers_started and not self._stopping:
            return
        self._stopping = True
        for slot in self._all_slots():
            slot.restart_at = None
        for child in (ending := self._next_to_end()):
            child.signal(signal.SIGTERM)
        if ending:
            self._kill_at = time.monotonic() + _COORDINATOR_GRACE

    def _next_to_end(self) -> list[_Child]:
        """The workers, when they have ended the dispatchers, and then the coordinator."""
        dispatchers = [child for child in self._children.values() if child.slot.queue is not None]
        return self._workers() or dispatchers or list(self._children.values())

    def _kill_after_grace(self) -> None:
        late = self._next_to_end()
        for child in late:
            self._say(f"{child.slot.name} has not ended in time: killing it")
        self._kill(late)

    def _kill(self, children: list[_Child]) -> None:
        self._kill_at = None
        for child in children:
            if self._status == DONE:
                self._status = FAILED
            kill_group(child.pid)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """TERM, INT and QUIT come into the loop, except those that we were started to ignore."""
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        before = {number: signal.getsignal(number) for number in CHILD_SIGNALS}
        previous = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
        self._selector.register(reader, selectors.EVENT_READ, lambda: self._on_signals(os.read(reader, 1024)))
        for number, handler in before.items():
            if handler != signal.SIG_IGN:
                signal.signal(number, _leave_it_to_the_loop)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(previous)
            self._selector.unregister(reader)
            os.close(reader)
            os.close(writer)

    def _on_signals(self, numbers: bytes) -> None:
        self._told_to_stop = True
        self._interrupts += numbers.count(signal.SIGINT)
        self._stop()
        if self._interrupts > 1 or signal.SIGQUIT in numbers:
            self._kill(list(self._children.values()))

    # -- pysqlx-ctl, when we have no coordinator that it could ask ----------------------------------------------------

    @contextlib.contextmanager
    def _control_server(self) -> Iterator[None]:
        if self._coordinator is not None:
            yield
            return
        from .control import ControlServer

        with contextlib.closing(ControlServer(self._plan.directory.control, self._on_question)) as server:
            self._selector.register(server, selectors.EVENT_READ, server.handle_readable)
            yield
            self._selector.unregister(server)

    def _on_question(self, question: Json, reply: Reply) -> None:
        if question.get("op") != "status":
            reply({"error": f"unknown question {question.get('op')!r}"})
            return
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
        status = self.status()
        for reply in self._questions:
            reply(status)
        self._questions.clear()

    def _workers(self) -> list[_Child]:
        return [child for child in self._children.values() if child.slot.number is not None]

    def status(self) -> Json:
        """The run as `pysqlx-ctl status` shows it, from what its workers have told of their pools.

        The pools of a worker that joined nobody share one budget for each database. Of a budget that a coordinator of
        another run has, this is our run's part.
        """
        workers = [
            {
                "worker": child.slot.number,
                "pid": child.pid,
                "uptime": round(time.monotonic() - child.started, 3),
                "restarts": child.slot.restarts,
                **_numbers(child.pools or []),
                "pools": [
                    {"name": pool.name, "database": pool.database, **_numbers([pool])} for pool in child.pools or []
                ],
            }
            for child in self._workers()
        ]
        by_database: dict[str, list[PoolStats]] = {}
        for child in self._workers():
            for pool in child.pools or []:
                by_database.setdefault(pool.database, []).append(pool)
        budgets = []
        for database, pools in by_database.items():
            numbers = _numbers(pools)
            size = max(pool.max_size for pool in pools)
            budgets.append(
                {"database": database, "size": size, "leased": numbers.pop("leases"), **numbers, "quarantined": 0}
            )
        return {"run": self._plan.name, "budgets": budgets, "workers": workers}


def _as_a_reason(status: int) -> str:
    """How a worker ended, for the jobs that it ran."""
    memory = ", perhaps out of memory" if status == -signal.SIGKILL else ""
    return f"its worker {describe_exit(status)}{memory}"


def _numbers(pools: list[PoolStats]) -> dict[str, int]:
    return {
        "leases": sum(pool.held for pool in pools),
        "in_use": sum(pool.in_use for pool in pools),
        "idle": sum(pool.idle for pool in pools),
        "waiting": sum(pool.waiting for pool in pools),
    }


def _leave_it_to_the_loop(number: int, frame: types.FrameType | None) -> None:
    """The interpreter has written the number into the wake-up pipe already."""


@contextlib.contextmanager
def _blocked(signals: frozenset[signal.Signals]) -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _hidden_main_module() -> Iterator[None]:
    """Keep a child from importing our `__main__` (the `pysqlx-run` command) before it starts its own work."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = types.ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
