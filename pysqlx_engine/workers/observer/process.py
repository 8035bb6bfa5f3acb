"""The observer's process: what looks, and what listens, in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
from collections.abc import Iterator

import uvicorn
from starlette.applications import Starlette

from ..process import CHILD_SIGNALS
from ..rundir import RunDirectory
from .spec import Listening, ObserverSpec
from .watch import Watch, joining
from .web import dashboard_app, metrics_app

MESSAGE_LIMIT = 1 << 16
_SHUTDOWN = 2
"""Seconds for what is being answered when we are told to end."""


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
    async with watch.watching():
        servers = [_Server(_config(app)) for _, app in apps]
        serving = [
            asyncio.ensure_future(server.serve(sockets=[bound]))
            for server, (bound, _) in zip(servers, apps, strict=True)
        ]
        stopping = asyncio.ensure_future(stop.wait())
        await asyncio.wait([stopping, *serving], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        for server in servers:
            server.should_exit = True
        await asyncio.gather(*serving)


def _config(app: Starlette) -> uvicorn.Config:
    return uvicorn.Config(
        app, log_config=None, log_level="warning", access_log=False, lifespan="off",
        timeout_graceful_shutdown=_SHUTDOWN, server_header=False,
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
    joining(run)
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
            loop.remove_reader(control)  # the supervisor is gone, and so are we in a moment

    loop.add_reader(control, hear)
    await observe(spec.listening, watch, told)
