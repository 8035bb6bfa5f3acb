"""How the processes of a run log: lines for people, or one JSON object a line.

A process's records go to its stderr, where the supervisor's pump reads them. In a worker the script's own configuration
of `logging` goes before ours:

- where it configures nothing, ours is used, as Python's own last resort would be;
- the handler that `logging.basicConfig` makes for stderr or stdout writes our objects with json; with text it keeps its
  format, and a job is named in front;
- whatever else it installs writes what it likes: for the pump those are printed lines.
"""

from __future__ import annotations

import contextvars
import copy
import json
import logging
import os
import re
import select
import sys
import threading
import time
import traceback
import warnings
from dataclasses import dataclass
from datetime import UTC, date, datetime
from datetime import time as time_of_day
from decimal import Decimal
from types import TracebackType
from typing import Any, Literal, NamedTuple, TextIO, cast
from uuid import UUID

import msgspec

from .. import log_config
from ..log_config import DEFAULT_LEVELS, log_levels
from ..masking import mask_uris

__all__ = ["JobAtWork", "LineFormatter", "LogSpec", "Source", "Voice", "at_work", "encode_line", "set_up", "wrap"]

Format = Literal["text", "json"]


class JobAtWork(NamedTuple):
    """The attempt that is running."""

    id: int
    task: str
    attempt: int

    def __str__(self) -> str:
        return f"job {self.id} {self.task}#{self.attempt}"


at_work: contextvars.ContextVar[JobAtWork | None] = contextvars.ContextVar("pysqlx_job", default=None)
"""What this task, or this thread, does."""


@dataclass(frozen=True, slots=True)
class LogSpec:
    """What the processes of a run have to know to log."""

    run: str = ""
    format: Format = "text"
    levels: str = DEFAULT_LEVELS
    """As the setting `log_level` has them."""


@dataclass(slots=True)
class Source:
    """Who logs."""

    run: str
    process: str
    worker: int | None = None
    pid: int | None = None
    """None: it is just being started."""


class Line(msgspec.Struct, omit_defaults=True, kw_only=True):
    """A line as JSON."""

    time: str
    level: str | None = None
    logger: str | None = None
    part: str | None = None
    message: str
    run: str
    process: str
    worker: int | None = None
    pid: int | None = None
    job: int | None = None
    task: str | None = None
    attempt: int | None = None
    stream: str | None = None
    exception: str | None = None
    extra: dict[str, Any] | None = None


_OURS = frozenset({"time", "message", "run", "process"})
"""The keys of a line that was written here, and of no other that is likely."""
_BEGIN = b'{"time":'
_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


def encode_line(source: Source, message: str, *, at: float, extra: dict[str, Any] | None = None, **more: Any) -> bytes:
    """A line of `source`, without its end. `at`: seconds since 1970."""
    more = {name: _clean(value) if isinstance(value, str) else value for name, value in more.items()}
    line = Line(
        time=datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        message=_clean(message),
        run=source.run,
        process=source.process,
        worker=source.worker,
        pid=source.pid,
        extra=_shown_extra(extra) if extra else None,
        **more,
    )
    return _encode(line)


def _clean(text: str) -> str:
    """Without lone surrogates, which no JSON can hold."""
    return text.encode(errors="backslashreplace").decode()


_DEEPEST = 10


def _shown_extra(extra: dict[str, Any]) -> dict[str, Any]:
    shown = {}
    for name, value in extra.items():
        try:
            shown[_key(name)] = _shown(value)
        except Exception:  # noqa: BLE001 - of a type of others, or another thread has changed it meanwhile
            shown[_key(name)] = _as_text(value)
    return shown


def _shown(value: object, depth: int = 0) -> object:
    """What JSON has for it, without passwords. What is no plain value is what its `repr` says: that of a dataclass may
    leave something out on purpose."""
    kind = type(value)
    if value is None or kind in (bool, float) or (kind is int and -(2**63) <= cast(int, value) < 2**64):
        return value
    if isinstance(value, str):
        return mask_uris(_clean(str.__str__(value)))
    if kind in (datetime, date, time_of_day):
        return cast(datetime, value).isoformat()
    if kind in (UUID, Decimal):
        return str(value)
    if depth < _DEEPEST:
        if isinstance(value, dict):
            return {_key(name): _shown(one, depth + 1) for name, one in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [_shown(one, depth + 1) for one in value]
    return _as_text(value)


def _key(name: object) -> str:
    return mask_uris(_clean(name)) if isinstance(name, str) else _as_text(name)


def _as_text(value: object) -> str:
    return mask_uris(_clean(_repr(value)))


def _repr(value: object) -> str:
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - whatever a `repr` of others raises
        return f"<{type(value).__name__} that cannot be shown>"


def wrap(line: bytes, source: Source, stream: str, at: float) -> bytes:
    """A line that `source` has printed, as a JSON object. One that is an object already stays as it is when it is ours,
    also behind something that was printed without an end; to others what they do not say themselves is added."""
    its_own = _members(line)
    if its_own.keys() >= _OURS:
        return line
    ours = line.find(_BEGIN, 1)
    if not its_own and ours > 0 and _members(line[ours:]).keys() >= _OURS:
        return wrap(line[:ours], source, stream, at) + b"\n" + line[ours:]
    if not its_own:
        return encode_line(source, line.decode(errors="replace"), at=at, stream=stream)
    added = _decode(encode_line(source, "", at=at, stream=stream))
    added = {key: value for key, value in added.items() if key not in its_own and key != "message"}
    if not added:
        return line
    return _encode(added)[:-1] + b"," + line.strip()[1:]


def _members(line: bytes) -> dict[str, msgspec.Raw]:
    """Those of a line that is an object."""
    if line.lstrip().startswith(b"{"):
        try:
            line.decode()
            return _decode(line)
        except (ValueError, RecursionError):  # it only looks like one
            pass
    return {}


_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_here = Source(run="", process="")
_format: Format = "text"


class LineFormatter(logging.Formatter):
    """Writes a record as the run's lines are written: as `LEVEL LOGGER: MESSAGE`, with the job that runs, or as JSON.

    A script that configures handlers of its own can have them use it.
    """

    def __init__(self, otherwise: logging.Formatter | None = None) -> None:
        """`otherwise`: how a record is written in text."""
        super().__init__()
        self._otherwise = otherwise

    def format(self, record: logging.LogRecord) -> str:
        try:
            return self._line(record, self._otherwise)
        except Exception as error:  # noqa: BLE001 - of an argument, or of a format; `handleError` would show all there is
            record = copy.copy(record)
            record.msg, record.args = f"{_as_text(record.msg)} cannot be formatted: {type(error).__name__}", None
            return self._line(record, None)

    def _line(self, record: logging.LogRecord, otherwise: logging.Formatter | None) -> str:
        if _format == "json":
            return self._json(record)
        job = at_work.get()
        if otherwise is not None:
            text = otherwise.format(record)
            return mask_uris(text if job is None else f"{job}: {text}")
        text = f"{record.levelname} {record.name}{'' if job is None else f' {job}'}: {record.getMessage()}"
        return mask_uris("\n".join([text, *self._traces(record)]))

    def _json(self, record: logging.LogRecord) -> str:
        job = at_work.get()
        part = getattr(record, "part", None) if record.name == "pysqlx_engine" else None
        known = _STANDARD if part is None else _STANDARD | {"part"}
        return _record_line(
            mask_uris(_COLOUR.sub("", record.getMessage())),
            mask_uris("\n".join(self._traces(record))),
            {name: value for name, value in vars(record).items() if name not in known},
            at=record.created,
            level=record.levelname.lower(),
            logger=record.name,
            part=part and str(part),
            job=job and job.id,
            task=job and job.task,
            attempt=job and job.attempt,
        )

    def _traces(self, record: logging.LogRecord) -> list[str]:
        traces = []
        if record.exc_info and record.exc_info[0] is not None:
            traces.append(self.formatException(record.exc_info))
        elif record.exc_text:
            traces.append(record.exc_text)
        if record.stack_info:
            traces.append(self.formatStack(record.stack_info))
        return traces


_LONGEST_LINE = 300_000
"""Bytes. What is escaped of it may be three times as long, and the pump's limit is 1 MiB: a longer line would arrive in
pieces, which are printed lines."""
_LONGEST_TEXT = 20_000
"""Characters of each text of a record that is too long."""


def _record_line(message: str, exception: str, extra: dict[str, Any], **more: Any) -> str:
    """A line of this process, for a stream with whatever encoding."""
    line = encode_line(_here, message, exception=exception or None, extra=extra, **more)
    if len(line) > _LONGEST_LINE:
        if len(message) > _LONGEST_TEXT:
            message = message[:_LONGEST_TEXT] + "..."
        if len(exception) > _LONGEST_TEXT:
            exception = "..." + exception[-_LONGEST_TEXT:]
        extra = {"cut": _as_text(extra)[:_LONGEST_TEXT]} if extra else {}
        line = encode_line(_here, message, exception=exception or None, extra=extra, **more)
    return _NO_ASCII.sub(lambda found: json.dumps(found[0])[1:-1], line.decode())


_NO_ASCII = re.compile(r"[^\x00-\x7f]+")


class _LastResort(logging.Handler):
    """For records that no handler of the script takes."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            _write(self.format(record) + "\n")
        except Exception:  # noqa: BLE001 - as every handler does
            self.handleError(record)


def _write(text: str) -> None:
    if sys.stderr is not None:
        sys.stderr.write(text)
        sys.stderr.flush()


def set_up(spec: LogSpec, process: str, worker: int | None = None) -> None:
    """Have this process log as its run does. `process`: what it is called, `worker`: the number of one, in which a
    script is going to run."""
    global _here, _format
    _here, _format = Source(spec.run, process, worker, os.getpid()), spec.format
    os.register_at_fork(after_in_child=_learn_pid)
    handler = _LastResort()
    handler.setFormatter(LineFormatter())
    logging.lastResort = handler
    for part, level in log_levels(spec.levels).items():
        (log_config.part(part) if part else logging.root).setLevel(level)
    sys.excepthook = _uncaught
    threading.excepthook = _uncaught_in_a_thread
    sys.unraisablehook = _unraisable
    if spec.format == "json":
        warnings.showwarning = _warned
    if worker is not None:
        _dress_basic_config()


def _learn_pid() -> None:
    _here.pid = os.getpid()


def _dress_basic_config() -> None:
    """Have the handler that a script's `logging.basicConfig` makes write our lines."""
    configure = logging.basicConfig

    def basic_config(**options: Any) -> None:
        before = list(logging.root.handlers)
        configure(**options)
        if options.get("handlers") is not None:  # the script has made them
            return
        for handler in logging.root.handlers:
            ours = type(handler) is logging.StreamHandler and handler.stream in (sys.stderr, sys.stdout)
            if ours and handler not in before:
                handler.setFormatter(LineFormatter(handler.formatter))

    basic_config.__doc__ = configure.__doc__
    logging.basicConfig = basic_config


class Voice:
    """What a command says itself, on its stderr."""

    def __init__(self, spec: LogSpec, process: str) -> None:
        self._json = spec.format == "json"
        self._source = Source(spec.run, process, pid=os.getpid())
        levels = log_levels(spec.levels)
        self._level = levels.get("supervisor", levels[""])

    def line(self, text: str, level: int, *, asked: bool = False) -> bytes | None:
        """What is to be written, with its end: as JSON no more than a pipe takes in one piece. None: it is not to
        be said. `asked`: somebody wants to know it, whatever the level."""
        if level < self._level and not asked:
            return None
        text = mask_uris(text)
        if not self._json:
            return text.encode(errors="replace") + b"\n"
        more: dict[str, Any] = {
            "level": logging.getLevelName(level).lower(),
            "logger": "pysqlx_engine",
            "part": "supervisor",
        }
        while len(line := encode_line(self._source, text, at=time.time(), **more)) >= select.PIPE_BUF:
            text = text[: len(text) // 2] + "..."
        return line + b"\n"


def _warned(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning is a record, as with `logging.captureWarnings`, but one that the last resort takes too."""
    text = warnings.formatwarning(message, category, filename, lineno, line)
    if file is not None:
        file.write(text)
    else:
        logging.getLogger("py.warnings").warning("%s", text.rstrip())


# -- what nobody has caught -------------------------------------------------------------------------------------------


def _uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not _tell(error, trace, ""):
        sys.__excepthook__(kind, error, trace)


def _uncaught_in_a_thread(args: threading.ExceptHookArgs) -> None:
    error = args.exc_value
    if error is None or isinstance(error, SystemExit):
        return
    name = args.thread.name if args.thread is not None else "?"
    if not _tell(error, args.exc_traceback, f"Exception in thread {name}:\n"):
        threading.__excepthook__(args)


def _unraisable(args: sys.UnraisableHookArgs) -> None:
    error, where = args.exc_value, f"{args.err_msg or 'Exception ignored in'}: {_repr(args.object)}\n"
    if error is None or not _tell(error, args.exc_traceback, where):
        sys.__unraisablehook__(args)


def _tell(error: BaseException, trace: TracebackType | None, where: str) -> bool:
    """Write it, without a password. False: Python's own way does as well."""
    try:
        text = "".join(traceback.format_exception(type(error), error, trace))
        shown = mask_uris(text)
        if _format == "text":
            is_secret = mask_uris(where + text) != where + text
            if is_secret:
                _write(mask_uris(where) + shown)
            return is_secret
        message = mask_uris(where.replace("\n", " ") + "".join(traceback.format_exception_only(error)).strip())
        more = {"level": "critical", "logger": "pysqlx_engine"}
        _write(_record_line(message, shown.rstrip("\n"), {}, at=time.time(), **more) + "\n")
    except Exception:  # noqa: BLE001 - an error that cannot be shown
        return False
    return True
