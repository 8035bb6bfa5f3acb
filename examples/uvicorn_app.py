"""An ASGI application in four processes of uvicorn that share ten connections. In two terminals:

    pysqlx-ctl coordinator --max-size 10
    PYSQLX_COORDINATOR=ipc://... uvicorn --workers 4 --app-dir examples uvicorn_app:app

The first prints the line that the second needs. Then: curl http://127.0.0.1:8000/
"""

import os
from collections.abc import Awaitable, Callable
from typing import Any

from pysqlx_engine import PySQLXEnginePool

Receive = Callable[[], Awaitable[dict[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]

pool = PySQLXEnginePool(uri=os.environ.get("PYSQLX_URI", "sqlite:./dev.db"))


async def app(scope: dict[str, Any], receive: Receive, send: Send) -> None:
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
    elif scope["type"] == "http":
        await answer(send)


async def lifespan(receive: Receive, send: Send) -> None:
    # A pool belongs to the event loop that it was started in, so it is started here and not at import. With Starlette
    # or FastAPI all of this is `async with pool: yield` in the application's lifespan.
    await receive()  # lifespan.startup
    async with pool:
        await send({"type": "lifespan.startup.complete"})
        await receive()  # lifespan.shutdown: uvicorn has answered what it had to
    await send({"type": "lifespan.shutdown.complete"})


async def answer(send: Send) -> None:
    async with pool.connection() as conn:
        row = await conn.query_first("SELECT 41 + 1 AS answer")
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/plain")]})
    await send({"type": "http.response.body", "body": f"{row} from process {os.getpid()}\n".encode()})
