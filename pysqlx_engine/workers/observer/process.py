"""The observer's process: what looks, and what listens, in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import os
import signal
import socket
import threading
from collections.abc import Iterator

import uvicorn
from starlette.applications import Starlette
from uvicorn.protocols.http.h11_impl import H11Protocol

from ...log_config import part
from ..process import CHILD_SIGNALS, allow_open_files
from ..rundir import RunDirectory
from .spec import Listening, ObserverSpec
from .watch import Watch
from .web import dashboard_app, metrics_app

MESSAGE_LIMIT = 1 << 16
MOST_CONNECTIONS = 300
"""At once, of browsers, probes and whoever else connects to one address."""
REQUEST_WITHIN = 10.0
"""Seconds for a request, from the connection's begin or the answer before on."""
READ_WITHIN = 60.0
"""Seconds for reading what was written of an answer at once, where no buffer takes it."""
OPEN_FILES = 2 * MOST_CONNECTIONS + 200
_SHUTDOWN = 1
"""Seconds for what is being answered when we are told to end."""
_END_WITHIN = 3.0
"""Seconds to end in: less than the supervisor waits. A database that does not answer is left to the kernel."""

logger = part("observer")


class _Protocol(H11Protocol):
    """Sends away who asks for nothing, and who reads no answer: uvicorn itself waits for either for ever, and when no
    descriptor is left nobody is answered any more, not even a probe."""

    _moved_at = 0.0
    """When it began, had written more than the buffers take, or had answered: since then somebody is waited for."""
    _timer: asyncio.TimerHandle | None = None
    _sent_away = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._moved_at = self.loop.time()
        self._look()
        # Who is sent away is among them for a moment more.
        there = [one for one in self.connections if isinstance(one, _Protocol) and not one._sent_away]
        if len(there) > MOST_CONNECTIONS:
            # Not the newest: who comes with a request would be kept out by those who have none.
            min((one for one in there if one._patience() < math.inf), key=lambda one: one._moved_at)._send_away()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        self._moved_at = self.loop.time()
        super().pause_writing()

    def on_response_complete(self) -> None:
        self._moved_at = self.loop.time()
        super().on_response_complete()  # which may begin with the next request, when it is here already

    def _patience(self) -> float:
        """Seconds that it may take from `_moved_at` on."""
        if self.flow.write_paused:
            return READ_WITHIN
        if self.cycle is not None and not self.cycle.response_complete:
            return math.inf  # it waits for us
        return READ_WITHIN if self.transport.get_write_buffer_size() else REQUEST_WITHIN

    def _look(self) -> None:
        left = self._moved_at + self._patience() - self.loop.time()
        if left <= 0:
            self._send_away()
        else:
            self._timer = self.loop.call_later(min(left, REQUEST_WITHIN), self._look)

    def _send_away(self) -> None:
        self._sent_away = True
        self.transport.abort()  # to close it would wait for who does not read the last answer


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield  # there may be two of them, and a signal is for the process


async def observe(listening: Listening, watch: Watch, stop: asyncio.Event) -> None:
    """Look and listen until `stop`."""
    apps: list[tuple[socket.socket, Starlette]] = []
    if listening.dashboard is not None:
        apps.append((listening.dashboard, dashboard_app(watch, listening.access)))
    if listening.metrics is not None:
        apps.append((listening.metrics, metrics_app(watch)))
    allow_open_files(OPEN_FILES)
    async with watch.watching():
        servers = [_Server(_config(app)) for _, app in apps]
        serving = [
            asyncio.ensure_future(server.serve(sockets=[bound]))
            for server, (bound, _) in zip(servers, apps, strict=True)
        ]
        stopping = asyncio.ensure_future(stop.wait())
        await asyncio.wait([stopping, *serving], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        _end_within(_END_WITHIN)
        for server in servers:
            server.should_exit = True
        await asyncio.gather(*serving)


def _end_within(seconds: float) -> None:
    """However long a database takes to answer, or a thread that looks."""
    timer = threading.Timer(seconds, os._exit, (0,))
    timer.daemon = True
    timer.start()


def _config(app: Starlette) -> uvicorn.Config:
    return uvicorn.Config(
        app, log_config=None, log_level="warning", access_log=False, lifespan="off",
        timeout_graceful_shutdown=_SHUTDOWN, server_header=False, http=_Protocol,
        ws="none",
    )  # fmt: skip


def observe_alone(run: RunDirectory, listening: Listening, uri: str | None) -> None:
    """Show a run that somebody else has started, in the foreground, until TERM or INT. `uri`: where there are jobs."""

    async def main() -> None:
        told = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, told.set)
        watch = Watch(run)
        if uri is not None:
            watch.add_jobs(uri, None)
        await observe(listening, watch, told)

    logging.basicConfig(format="%(message)s")
    asyncio.run(main())


def main(spec: ObserverSpec, control: socket.socket) -> None:
    """The life of an observer that a supervisor started: until TERM."""
    asyncio.run(_main(spec, control))


async def _main(spec: ObserverSpec, control: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    loop.add_signal_handler(signal.SIGTERM, told.set)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, CHILD_SIGNALS)
    watch = Watch(spec.run)
    if os.environ.get("PYSQLX_URI"):  # there may be jobs in it that others serve
        watch.add_jobs(None, None)
    control.setblocking(False)

    def hear() -> None:
        with contextlib.suppress(BlockingIOError):
            while data := control.recv(MESSAGE_LIMIT):
                message = json.loads(data)
                if message["op"] == "queue":
                    watch.add_jobs(message["uri"], message["max_size"], message["queues"])
                elif message["op"] == "dump":
                    logger.answer("observer: %s", watch.describe())
            loop.remove_reader(control)  # the supervisor is gone, and so are we in a moment

    loop.add_reader(control, hear)
    await observe(spec.listening, watch, told)
