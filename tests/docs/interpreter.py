"""Runs the Python of a page, block after block in one event loop, as `python -m asyncio` would.

On stdin a JSON object `{"place": ..., "source": ...}` for each block; on stdout its answer, `{"printed": ..., "error":
...}`.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import io
import json
import sys
import traceback
from typing import Any


def main() -> None:
    names: dict[str, Any] = {"__name__": "docs"}
    with asyncio.Runner() as runner:
        for line in sys.stdin:
            block = json.loads(line)
            printed, error = io.StringIO(), ""
            with contextlib.redirect_stdout(printed):
                try:
                    code = compile(block["source"], block["place"], "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
                    runner.run(_run(code, names))
                except BaseException:
                    error = traceback.format_exc()
            sys.stdout.write(json.dumps({"printed": printed.getvalue(), "error": error}) + "\n")
            sys.stdout.flush()


async def _run(code: Any, names: dict[str, Any]) -> None:
    result = eval(code, names)
    if asyncio.iscoroutine(result):
        await result


if __name__ == "__main__":
    main()
