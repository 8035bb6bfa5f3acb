"""A TCP proxy between a pool and its server that does what networks do: refuse, go deaf, reset, be slow."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from .servers import free_port

T = TypeVar("T")
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class FaultProxy:
    """`with FaultProxy(server_port) as proxy:` listens on `proxy.port` and passes everything on to the server.

    All methods may be called from any thread, and take effect before they return.
    """

    def __init__(self, server_port: int, host: str = "127.0.0.1") -> None:
        """`host` is the address of this machine that the server listens on, and that the proxy is to listen on."""
        self._host = host
        self._server_port = server_port
        self.port = free_port()
        self.connect_delay = 0.0
        """Seconds before a new connection is passed on."""
        self.delay = 0.0
        """Seconds by which every packet is late."""
        self.accepted = 0
        """Connections so far."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)
        self._listening: asyncio.Task[None] | None = None
        self._hearing = asyncio.Event()
        self._hearing.set()
        self._links: set[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def __enter__(self) -> FaultProxy:
        self._thread.start()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.hear()
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def start(self) -> None:
        """Accept connections."""
        self._run(self._start())

    def stop(self) -> None:
        """Refuse connections and close those there are, as a server does that is shut down."""
        self._run(self._stop())

    def stop_listening(self) -> None:
        """Refuse connections, and keep those there are."""
        self._run(self._stop_listening())

    def go_deaf(self) -> None:
        """Keep every connection and accept new ones, but pass nothing on: a network that swallows packets."""
        self._call(self._hearing.clear)

    def hear(self) -> None:
        """Pass on again, also what came meanwhile."""
        self._call(self._hearing.set)

    def reset(self) -> None:
        """End every connection by a TCP reset, on both sides."""
        self._call(self._reset)

    # -- in the proxy's thread ------------------------------------------------------------------------------------

    async def _start(self) -> None:
        if self._listening is None:
            listener = socket.create_server((self._host, self.port), backlog=100)
            listener.setblocking(False)
            self._listening = asyncio.create_task(self._listen(listener))

    async def _listen(self, listener: socket.socket) -> None:
        # Not asyncio's server: what it has accepted when it is closed stays open until the garbage is collected.
        with listener:
            while True:
                accepted, _ = await self._loop.sock_accept(listener)
                task = asyncio.create_task(self._accept(accepted))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _stop_listening(self) -> None:
        if self._listening is not None:
            self._listening.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await self._listening
            self._listening = None

    async def _stop(self) -> None:
        await self._stop_listening()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _reset(self) -> None:
        for link in list(self._links):
            for writer in link:
                end: socket.socket = writer.get_extra_info("socket")
                with contextlib.suppress(OSError):  # it is closed already
                    end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
                writer.transport.abort()

    async def _accept(self, accepted: socket.socket) -> None:
        self.accepted += 1
        try:
            await asyncio.sleep(self.connect_delay)
            await self._hearing.wait()
            server_reader, server_writer = await asyncio.open_connection(self._host, self._server_port)
        except (OSError, asyncio.CancelledError):
            accepted.close()
            return
        try:
            reader, writer = await asyncio.open_connection(sock=accepted)
        except asyncio.CancelledError:
            server_writer.close()
            return
        link = (writer, server_writer)
        self._links.add(link)
        try:
            await asyncio.gather(self._pump(reader, server_writer), self._pump(server_reader, writer))
        except asyncio.CancelledError:
            pass
        finally:
            self._links.discard(link)
            for end in link:
                end.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if self.delay:
                    await asyncio.sleep(self.delay)
                await self._hearing.wait()
                writer.write(data)
                await writer.drain()
            await self._hearing.wait()
        writer.close()

    # -- from other threads ---------------------------------------------------------------------------------------

    def _run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    def _call(self, function: Callable[[], object]) -> None:
        async def call() -> None:
            function()

        self._run(call())
