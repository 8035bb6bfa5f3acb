"""`LOG_CONFIG`: four switches for what is logged and how errors read, in code and by environment. And the logger
`pysqlx_engine`, with a level for each part that docs speak of."""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import os
import re
from typing import TYPE_CHECKING, Any

from .errors import PySQLXError, SettingsError
from .masking import mask_uris

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["LEVELS", "LOG_CONFIG", "PARTS", "LogConfig", "log_levels", "part"]

PARTS = ("supervisor", "coordinator", "observer", "pool", "jobs", "sql")
LEVELS = ("debug", "info", "warning", "error", "critical")
DEFAULT_LEVELS = "warning,supervisor=info"


def log_levels(text: str) -> dict[str, int]:
    """`info,pool=debug` as levels by part; that of `""` is for all that is not named. What `text` leaves open is as in
    `DEFAULT_LEVELS`, but a level without a part is one for all parts. Raises ValueError."""
    levels: dict[str, int] = {}
    for entry in [*DEFAULT_LEVELS.split(","), *sorted(text.lower().split(","), key=lambda entry: "=" in entry)]:
        part, equals, level = (word.strip() for word in entry.rpartition("="))
        if level not in LEVELS or part not in (PARTS if equals else ("",)):
            raise ValueError(f"{entry.strip()!r} is no level, and no part with a level")
        if not equals:
            levels.clear()
        levels[part] = getattr(logging, level.upper())
    return levels


_ours = logging.getLogger("pysqlx_engine")


class Part(logging.Logger):
    """A part's own level, before the logger `pysqlx_engine`.

    Its records are that logger's: they have its name, and its filters, its handlers and `disabled` hold for them; so
    does its level where the part has none. No configuration of `logging` knows of a part.
    """

    def __init__(self, part: str) -> None:
        super().__init__(_ours.name)
        self.part = part

    def isEnabledFor(self, level: int) -> bool:
        if self.level == logging.NOTSET:
            return _ours.isEnabledFor(level)
        return level >= self.level and level > self.manager.disable and not _ours.disabled

    def getEffectiveLevel(self) -> int:
        return self.level or _ours.getEffectiveLevel()

    def answer(self, text: str, *values: object) -> None:
        """Log, at INFO, what somebody has asked for: whatever the level."""
        self._log(logging.INFO, text, values)

    def makeRecord(self, *args: Any, **options: Any) -> logging.LogRecord:
        record = super().makeRecord(*args, **options)
        record.part = self.part
        return record

    def handle(self, record: logging.LogRecord) -> None:
        _hide_secrets(record)
        _ours.handle(record)


def _hide_secrets(record: logging.LogRecord) -> None:
    """Not all that we log is our own text: there are errors of hooks and of handlers."""
    with contextlib.suppress(Exception):  # what cannot be shown is reported by the handler
        text = record.getMessage()
        shown = mask_uris(text)
        if shown != text:
            record.msg, record.args = shown, ()
        if record.exc_info and record.exc_info[0] is not None:
            trace = _plain.formatException(record.exc_info)
            shown = mask_uris(trace)
            if shown != trace:  # whoever has the exception itself could show it
                record.exc_info, record.exc_text = None, shown


_plain = logging.Formatter()
_parts = {name: Part(name) for name in PARTS}


def part(name: str) -> Part:
    """What a part logs to. Raises KeyError."""
    return _parts[name]


logger = part("sql")

_WORDS = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}


class _Switch:
    """A bool of `LogConfig` that refuses everything else."""

    def __set_name__(self, owner: type[LogConfig], name: str) -> None:
        self._name = name

    def __get__(self, config: LogConfig, owner: type[LogConfig]) -> bool:
        config.check()
        return config._values[self._name]

    def __set__(self, config: LogConfig, value: bool) -> None:
        config._values[self._name] = _as_bool(self._name, value)
        config._problems.pop(self._name, None)
        config._apply()


class LogConfig:
    """The switches. Each is a bool, False by default, and starts with the environment variable of its name.

    Allowed values, in code and in the environment, are true and false in the usual words (1/0, true/false, yes/no,
    on/off); anything else is a SettingsError. Log lines go to the logger `pysqlx_engine`, as its part `sql`.
    """

    PYSQLX_DEV_MODE = _Switch()
    """Log each statement with its parameters built in, at DEBUG. For reading only: this is never what is sent."""
    PYSQLX_SQL_LOG = _Switch()
    """Log each statement and its parameters, as they are sent, at INFO."""
    PYSQLX_USE_COLOR = _Switch()
    """Colour logged SQL and JSON errors. The environment variable NO_COLOR wins."""
    PYSQLX_ERROR_JSON_FMT = _Switch()
    """The text of an error is JSON with code, message and error (the class)."""

    def __init__(self) -> None:
        self._values: dict[str, bool] = {}
        self._problems: dict[str, SettingsError] = {}
        for name in [name for name, value in vars(LogConfig).items() if isinstance(value, _Switch)]:
            self._values[name] = False
            try:
                self._values[name] = _as_bool(name, os.environ.get(name) or False)
            except SettingsError as error:
                self._problems[name] = error
        self.statements = False
        """Whether any statement may be logged: the one thing a query looks at."""
        self._apply()

    def check(self) -> None:
        """Raise the SettingsError of a bad value in the environment. Not while the package is imported: whoever imports
        it could not tell the user in a line of its own."""
        for problem in self._problems.values():
            raise problem

    def _apply(self) -> None:
        self.statements = self._values["PYSQLX_SQL_LOG"] or self._values["PYSQLX_DEV_MODE"]
        PySQLXError._render = _as_json if self._values["PYSQLX_ERROR_JSON_FMT"] else None

    def __repr__(self) -> str:
        return f"LogConfig({', '.join(f'{name}={value}' for name, value in self._values.items())})"


def _as_bool(name: str, value: object) -> bool:
    word = _WORDS.get(str(value).strip().lower())
    if word is None:
        raise SettingsError(f"{name} is {value!r}: allowed are 1, true, yes, on and 0, false, no, off")
    return word


def log_statement(sent: str, sent_values: object, sql: str, values: Mapping[str, object]) -> None:
    """Log one statement as the switches say: as it is sent, and with its `values` built in for reading."""
    if LOG_CONFIG.PYSQLX_DEV_MODE and logger.isEnabledFor(logging.DEBUG):
        readable = _NAME.sub(lambda match: _literal(values[match[1]]) if match[1] in values else match[0], sql)
        logger.debug("development mode, SQL with its parameters built in (not what is sent):\n%s", _colour(readable))
    if LOG_CONFIG.PYSQLX_SQL_LOG and logger.isEnabledFor(logging.INFO):
        logger.info("\nSQL: %s\n\nPARAMS: %s", _colour(sent), sent_values)


_NAME = re.compile(r"(?<!:):(\w+)")


def _literal(value: object) -> str:
    """`value` as an SQL literal, near enough to be read and tried out."""
    match value:
        case None:
            return "NULL"
        case bool() | int() | float():
            return str(value).upper()
        case bytes():
            return f"X'{value.hex()}'"
        case tuple():
            return f"ARRAY[{', '.join(map(_literal, value))}]"
        case dict() | list():
            value = json.dumps(value, ensure_ascii=False)
    return "'" + str(value).replace("'", "''") + "'"


def _as_json(error: PySQLXError) -> str:
    text = json.dumps(
        {"code": error.code, "message": error.message, "error": type(error).__name__}, indent=2, ensure_ascii=False
    )
    return f"\n{_colour(text, 'json')}\n"


def _colour(text: str, language: str = "sql") -> str:
    if not LOG_CONFIG.PYSQLX_USE_COLOR or os.environ.get("NO_COLOR"):
        return text
    try:
        pygments = importlib.import_module("pygments")
        lexer = importlib.import_module("pygments.lexers").get_lexer_by_name(language)
        formatter = importlib.import_module("pygments.formatters").TerminalFormatter()
    except ImportError:
        return _PLAIN_COLOURS.sub(_paint, text)
    coloured: str = pygments.highlight(text, lexer, formatter)
    return coloured.rstrip("\n")


# Without pygments: quoted text, the common keywords, numbers.
_PLAIN_COLOURS = re.compile(
    r"""(?P<text>'(?:[^']|'')*'|"(?:[^"\\]|\\.)*")"""
    r"|(?P<word>\b(?:SELECT|INSERT|UPDATE|DELETE|INTO|VALUES|FROM|WHERE|AND|OR|NOT|NULL|AS|SET|JOIN|ON|GROUP|ORDER|BY"
    r"|LIMIT|WITH|RETURNING|CREATE|DROP|ALTER|TABLE|INDEX|BEGIN|START|TRANSACTION|COMMIT|ROLLBACK)\b)"
    r"|(?P<number>\b\d+(?:\.\d+)?\b)",
    re.IGNORECASE,
)
_ANSI = {"text": "33", "word": "34", "number": "36"}


def _paint(match: re.Match[str]) -> str:
    return f"\x1b[{_ANSI[match.lastgroup or 'text']}m{match.group()}\x1b[0m"


LOG_CONFIG = LogConfig()
