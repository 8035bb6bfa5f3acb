"""What the observer answers by HTTP: health, metrics, and the page with what it asks for."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from ...errors import JobError
from ..jobs.administration import MAY_CANCEL, MAY_RETRY, Administration, Changed
from ..jobs.life import State
from ..jobs.tasks import check_name
from ..jobs.views import Filter
from . import access
from .jobs import JobsDatabase, JobsError
from .watch import Watch

STATIC = Path(__file__).parent / "static"
PAGE = 50
"""Jobs of one list."""
_GREATEST_ID = 2**63 - 1
_HEADERS = {
    # Nothing from elsewhere, and nobody may put the page into a frame to have its buttons pressed.
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'self'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",  # the address may hold the token
    "Cache-Control": "no-store",
}

Endpoint = Callable[[Request], Awaitable[Response]]


class _BadRequestError(Exception):
    """The question makes no sense. The text says why."""


def metrics_app(watch: Watch) -> Starlette:
    """Health and metrics, for whoever can reach the address."""
    return Starlette(routes=_health(watch) + _metrics(watch))


def dashboard_app(watch: Watch, rule: access.Access) -> Starlette:
    """Health, and what `rule` allows: metrics and the page."""

    async def check(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        asked = access.Request(
            host=request.headers.get("host", ""),
            changes=request.method not in {"GET", "HEAD"},
            origin=request.headers.get("origin"),
            token=access.token_of(request.headers, request.cookies, request.query_params),
        )
        refusal = rule.refusal(asked)
        # By what is routed by: the Host may hold a path, too.
        if request.scope["path"] in {"/healthz", "/readyz"}:
            response = await call_next(request)
            if refusal is not None and response.status_code == 503:
                # A probe has no token, and learns no more than yes or no: the reason names the run, and files of it.
                return PlainTextResponse("no\n", 503)
            return response
        if refusal is not None:
            return PlainTextResponse(refusal[1] + "\n", refusal[0], _HEADERS)
        response = await call_next(request)
        response.headers.update(_HEADERS)
        return response

    async def home(request: Request) -> Response:
        if "token" in request.query_params:  # out of the address: it would stay in the browser's history
            response: Response = RedirectResponse("/", 303)
            # Lax: whoever follows a link to a job, from a chat say, is known as well. Nothing is changed by a GET.
            name = access.cookie_for(request.headers.get("host", ""))
            value = access.cookie_value(request.query_params["token"])
            response.set_cookie(name, value, httponly=True, samesite="lax")
            return response
        return Response((STATIC / "index.html").read_bytes(), media_type="text/html")

    routes = [
        Route("/", home),
        *_health(watch),
        *_metrics(watch),
        *_questions(watch),
        Mount("/static", StaticFiles(directory=STATIC)),
    ]
    return Starlette(routes=routes, middleware=[Middleware(BaseHTTPMiddleware, dispatch=check)])


# -- health and metrics -----------------------------------------------------------------------------------------------


def _health(watch: Watch) -> list[Route]:
    async def healthz(request: Request) -> Response:
        """Whether the run answers: if it does not for long, start it again."""
        return PlainTextResponse("ok\n") if watch.status is not None else PlainTextResponse(f"{watch.failure}\n", 503)

    async def readyz(request: Request) -> Response:
        """Whether all that is to be there is there."""
        status = watch.status
        if status is None:
            return PlainTextResponse(f"{watch.failure}\n", 503)
        health = status.health
        if health.ready:
            return PlainTextResponse("ok\n")
        missing = [] if health.workers is None else [f"{health.up} of {health.workers} workers are up"]
        return PlainTextResponse("; ".join(missing + health.missing) + "\n", 503)

    return [Route("/healthz", healthz), Route("/readyz", readyz)]


def _metrics(watch: Watch) -> list[Route]:
    if importlib.util.find_spec("prometheus_client") is None:
        return []
    from prometheus_client.exposition import CONTENT_TYPE_LATEST

    from . import metrics

    async def page(request: Request) -> Response:
        jobs = [database.status for database in watch.databases.values()]
        return Response(metrics.page(watch.status, jobs), headers={"Content-Type": CONTENT_TYPE_LATEST})

    return [Route("/metrics", page)]


# -- what the page asks for -------------------------------------------------------------------------------------------


def _questions(watch: Watch) -> list[Route]:
    def database(request: Request) -> JobsDatabase:
        name = request.query_params.get("database")
        found = watch.databases.get(name) if name else next(iter(watch.databases.values()), None)
        if found is None:
            raise _BadRequestError("this run has no job queue" if name is None else f"no job queue in {name}")
        return found

    async def status(request: Request) -> Response:
        return _json(
            {
                "now": time.time(),
                "run": watch.run.name,
                "failure": watch.failure if watch.status is None else None,
                "status": watch.status,
                "recent": watch.history.recent(),
                "jobs": [one.status for one in watch.databases.values()],
            }
        )

    async def history(request: Request) -> Response:
        said = request.query_params
        try:
            after = int(said.get("after", "0"))
        except ValueError:
            raise _BadRequestError(f"after={said['after'][:40]!r}: the number of a point") from None
        return _json({"points": watch.history.points(said.get("database", ""), after)})

    async def jobs(request: Request) -> Response:
        said = request.query_params
        states = frozenset(_state(text) for text in said.getlist("state")) or frozenset(State)
        which = Filter(states, said.get("queue") or None, said.get("task") or None)
        before = None if "before" not in said else _id(said["before"])
        async with database(request).opened() as admin:
            found = await admin.views.jobs(admin.connection, which, PAGE + 1, before)
        more = found[PAGE - 1].id if len(found) > PAGE else None
        return _json({"jobs": found[:PAGE], "before": more})

    async def job(request: Request) -> Response:
        id_ = _id(request.path_params["id"])
        async with database(request).opened() as admin:
            found = await admin.views.job(admin.connection, id_)
        if found is None:
            return _json({"error": f"there is no job {id_}"}, 404)
        facts = msgspec.to_builtins(found)
        del facts["owner"]
        return _json(facts | {"may": [*_may(found.state)]})

    async def change(request: Request) -> Response:
        id_, verb = _id(request.path_params["id"]), request.path_params["verb"]
        act = {"retry": Administration.retry, "cancel": Administration.cancel}[verb]
        where = database(request)
        async with where.opened() as admin:
            changed: Changed = await admin.transaction(act, admin, [id_])
            await admin.tell()
        where.look_soon()
        return _json({"done": changed.done, "asked": changed.asked, "reason": changed.unchanged.get(id_)})

    async def pause(request: Request) -> Response:
        queue = request.path_params["queue"]
        try:
            check_name("queue", queue)
        except (ValueError, JobError) as error:
            raise _BadRequestError(str(error)) from None
        where = database(request)
        async with where.opened() as admin:
            await admin.set_paused(queue, pause=request.path_params["verb"] == "pause")
        where.look_soon()
        return _json({"queue": queue, "paused": request.path_params["verb"] == "pause"})

    return [
        Route("/api/status", status),
        Route("/api/history", _answered(history)),
        Route("/api/jobs", _answered(jobs)),
        Route("/api/jobs/{id}", _answered(job)),
        *(_post(f"/api/jobs/{{id}}/{verb}", change, verb) for verb in ("retry", "cancel")),
        *(_post(f"/api/queues/{{queue:path}}/{verb}", pause, verb) for verb in ("pause", "resume")),
    ]


def _post(path: str, endpoint: Endpoint, verb: str) -> Route:
    async def with_verb(request: Request) -> Response:
        request.path_params["verb"] = verb
        return await endpoint(request)

    return Route(path, _answered(with_verb), methods=["POST"])


def _answered(endpoint: Endpoint) -> Endpoint:
    """An error is an answer, too."""

    async def answer(request: Request) -> Response:
        try:
            return await endpoint(request)
        except _BadRequestError as error:
            return _json({"error": str(error)}, 400)
        except JobsError as error:
            return _json({"error": str(error)}, 503)

    return answer


def _json(answer: Mapping[str, Any], status: int = 200) -> Response:
    return Response(msgspec.json.encode(answer), status, media_type="application/json")


def _state(text: str) -> State:
    try:
        return State(text)
    except ValueError:
        raise _BadRequestError(f"state {text!r}: there are {', '.join(State)}") from None


def _id(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 19 or not 1 <= int(text) <= _GREATEST_ID:
        raise _BadRequestError(f"{text[:40]!r} is no job's number")
    return int(text)


def _may(state: State) -> list[str]:
    return [verb for verb, states in (("retry", MAY_RETRY), ("cancel", MAY_CANCEL)) if state in states]
