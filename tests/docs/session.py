"""A reader who does what a page says, in an empty directory: writes its files, types its commands, compares what is
printed with what is shown."""

from __future__ import annotations

import configparser
import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import yaml

from pysqlx_engine import PySQLXEngineSync
from pysqlx_engine.settings import load_run_settings

from ..workers.runs import session_members, wait_gone
from .blocks import ROOT, Block
from .unrun import PROGRAMS, understood

TIMEOUT = 60.0
PAUSE = 0.2
"""Seconds between two looks: each is a process, and takes its time from what it waits for."""
LOOKS = ("curl ", "pysqlx-ctl status", "pysqlx-ctl health", "pysqlx-ctl jobs list", "pysqlx-ctl jobs stats")
"""Commands that only look. After something was started they are repeated until it is up, and says what is shown."""


class Mismatch(AssertionError):
    """A block that does not do what the page says."""


class Session:
    """`replaced`: what stands in the page, and what it is on this machine."""

    def __init__(self, directory: Path, environment: Mapping[str, str], replaced: Mapping[str, str]) -> None:
        self._directory = directory
        self._replaced = replaced
        self._environment = {
            **environment,
            "PATH": f"{self._stand_ins()}:{Path(sys.executable).parent}:{os.environ['PATH']}",
        }
        self._interpreter: subprocess.Popen[str] | None = None
        self._terminals: dict[str, subprocess.Popen[bytes]] = {}
        self._unseen: set[str] = set()
        """Terminals in which something was started, and nobody has looked since whether it is up."""
        self._unused: set[str] = set()
        """Modules that were written, and that no block has named since."""
        self._printed: Callable[[], str] | None = None
        """What the last thing that was run has printed; asked again, it may be more."""
        for name in ("examples", "settings"):
            (directory / name).symlink_to(ROOT / name)

    def _stand_ins(self) -> Path:
        """A directory of programs that are only checked."""
        programs = self._directory / ".stand-ins"
        programs.mkdir()
        for name in PROGRAMS:
            check = f"PYTHONPATH={ROOT} exec {sys.executable} -m tests.docs.unrun {name}"
            if name == "make":  # knows best what it would do
                check = f"exec {shutil.which('make')} --no-print-directory -n -C {ROOT}"
            (programs / name).write_text(f'#!/bin/sh\n{check} "$@" > /dev/null\n')
            (programs / name).chmod(0o755)
        return programs

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in (self._interpreter, *self._terminals.values()):
            if process is not None and process.poll() is None:
                for pid in session_members(process.pid):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)
                process.wait(TIMEOUT)

    # -- blocks -----------------------------------------------------------------------------------------------------

    def do(self, block: Block) -> None:
        """Raises Mismatch, or what a reader would see."""
        text = block.text
        for shown, here in self._replaced.items():
            text = re.sub(shown, lambda _, here=here: here, text)
        self._unused = {name for name in self._unused if not re.search(rf"\b{name}\b", text)}
        kind = {"console": self._console, "bash": self._bash, "python": self._python, "text": self._text}
        if block.is_file:
            self._file(block, text)
        elif block.language in kind:
            kind[block.language](block, text)
        elif block.language in CHECKS:
            self._check(block, text)
        else:
            raise Mismatch(f"{block.place}: nobody knows how to run {block.language!r}")

    def finish(self) -> None:
        """What still runs in the terminals is ended, as by TERM, and ends well."""
        if self._unseen:
            raise Mismatch(f"nobody looks whether what is started in {self._unseen} is up: show what it prints")
        if self._unused:
            raise Mismatch(f"nobody runs or imports {self._unused}")
        for title, process in reversed(self._terminals.items()):
            if process.poll() is not None and process.returncode:
                raise Mismatch(f"{title} has ended with {process.returncode}: {self._said(title)}")
            for child in psutil.Process(process.pid).children() if process.poll() is None else []:
                child.terminate()
            if process.wait(TIMEOUT):
                raise Mismatch(f"{title} ended with {process.returncode}: {self._said(title)}")
            wait_gone(session_members(process.pid))
        if self._interpreter is not None:
            assert self._interpreter.stdin is not None
            self._interpreter.stdin.close()
            if self._interpreter.wait(TIMEOUT):
                raise Mismatch(f"the page's Python ended with status {self._interpreter.returncode}")

    def _file(self, block: Block, text: str) -> None:
        path = self._directory / block.title
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        if block.language == "python":
            compile(text, block.title, "exec")
            self._unused.add(path.stem)
        else:
            self._check(block, text)
        self._printed = None

    def _python(self, block: Block, text: str) -> None:
        if self._interpreter is None:
            self._interpreter = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("interpreter.py"))],
                cwd=self._directory, env={**self._environment, "PYTHONPATH": str(self._directory)},
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
            )  # fmt: skip
        assert self._interpreter.stdin is not None
        assert self._interpreter.stdout is not None
        self._interpreter.stdin.write(json.dumps({"place": block.place, "source": text}) + "\n")
        self._interpreter.stdin.flush()
        answer = json.loads(self._interpreter.stdout.readline() or '{"error": "the interpreter has ended"}')
        if answer["error"]:
            raise Mismatch(f"{block.place}: {answer['error']}")
        self._printed = lambda: str(answer["printed"])

    def _bash(self, block: Block, text: str) -> None:
        if block.is_terminal:
            self._start(block, text)
        else:
            self._run(block, text)

    def _console(self, block: Block, text: str) -> None:
        """Commands behind `$ `, and below each what it prints."""
        before, *parts = re.split(r"^\$ ", text, flags=re.MULTILINE)
        if before or not parts:
            raise Mismatch(f"{block.place}: a console begins with a command: $ ...")
        for part in parts:
            command, *shown = part.splitlines()
            while command.endswith("\\"):
                command += "\n" + shown.pop(0)
            self._bash(block, command)
            if shown:
                self._unseen.discard(block.title)
                self._compare(block, command, shown)

    def _text(self, block: Block, text: str) -> None:
        """What the block before has printed, or what is in a terminal by now."""
        if block.is_terminal:
            self._printed = lambda: self._said(block.title)
            self._unseen.discard(block.title)
        if self._printed is None:
            raise Mismatch(f"{block.place}: what prints this? Where nothing does, say <!-- not run: why -->")
        self._compare(block, "", text.splitlines())

    # -- commands -----------------------------------------------------------------------------------------------------

    def _script(self, terminal: str, text: str) -> list[str]:
        """`text` with what was exported and where it was gone to before in this terminal."""
        state = shlex.quote(str(self._directory / f".state {terminal}"))
        return [
            "bash", "-c",
            f"if [ -f {state} ]; then . {state}; fi; set -euo pipefail\n{text}\n"
            f'{{ export -p; echo "cd $(printf %q "$PWD")"; }} > {state}',
        ]  # fmt: skip

    def _run(self, block: Block, text: str) -> None:
        done = self._once(text)
        deadline = time.monotonic() + TIMEOUT
        while done.returncode and _only_looks(text) and self._terminals and time.monotonic() < deadline:
            time.sleep(PAUSE)
            done = self._once(text)
        if done.returncode:
            raise Mismatch(f"{block.place}: status {done.returncode} of\n{text}\n{done.stdout}")
        outputs = [done.stdout]

        def printed() -> str:
            return outputs.pop() if outputs else self._once(text).stdout

        self._printed = printed if _only_looks(text) else lambda: done.stdout
        if _only_looks(text):
            self._unseen.clear()

    def _once(self, text: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self._script("", text), cwd=self._directory, env=self._environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=TIMEOUT, check=False,
        )  # fmt: skip

    def _start(self, block: Block, text: str) -> None:
        """In a terminal of its own, where it may go on while others are typed into."""
        before = self._terminals.get(block.title)
        if before is not None and before.wait(TIMEOUT):
            raise Mismatch(f"{block.place}: what ran in {block.title} ended badly: {self._said(block.title)}")
        with (self._directory / f".{block.title}").open("ab") as output:
            self._terminals[block.title] = subprocess.Popen(
                self._script(block.title, text), cwd=self._directory, env=self._environment,
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        self._unseen.add(block.title)
        self._printed = lambda: self._said(block.title)

    def _said(self, terminal: str) -> str:
        return (self._directory / f".{terminal}").read_text()

    def _compare(self, block: Block, command: str, shown: list[str]) -> None:
        """Every line that is shown is printed, in whatever order; the numbers of processes and times may be others."""
        assert self._printed is not None
        wanted = Counter(self._constant(line) for line in shown if line.strip() not in ("", "..."))
        deadline = time.monotonic() + TIMEOUT
        while True:
            printed = self._printed()
            missing = wanted - Counter(self._constant(line) for line in printed.splitlines())
            if not missing:
                return
            waits = block.is_terminal or _only_looks(command)
            if not waits or time.monotonic() > deadline:
                raise Mismatch(f"{block.place}: {list(missing)} is shown, but printed is\n{printed}")
            time.sleep(PAUSE if _only_looks(command) else 0.02)

    def _constant(self, line: str) -> str:
        """The part that is the same each time: not which worker it was, numbers of four digits and more, times, paths;
        in a table, which is about a moment, no number; frames and spaces are nothing."""
        line = re.sub(r"\[worker \d+\]", "[worker #]", line.replace(str(self._directory), "/run/user/1000"))
        if "│" in line:
            line = re.sub(r"\d+", "#", line)
        line = re.sub(r"\d+:\d\d\b|\d{4,}|\d+\.\d+", "#", re.sub(r"[─-╿|]", " ", line))
        return " ".join(line.split())

    # -- what is only read ------------------------------------------------------------------------------------------

    def _check(self, block: Block, text: str) -> None:
        try:
            CHECKS[block.language](self, text)
        except (Exception, SystemExit) as error:
            raise Mismatch(f"{block.place}: {type(error).__name__}: {error}") from error

    def _ini(self, text: str) -> None:
        unit = configparser.ConfigParser(strict=False, interpolation=None)
        unit.optionxform = str  # type: ignore[assignment,method-assign]
        unit.read_string(text)
        assert unit.sections()
        understood(shlex.split(unit.get("Service", "ExecStart", fallback="")))

    def _env(self, text: str) -> None:
        path = self._directory / ".checked.env"
        path.write_text(text)
        load_run_settings(str(path))

    def _yaml(self, text: str) -> None:
        for document in yaml.safe_load_all(text):
            assert document
            for command in _commands(document):
                understood(command)

    def _sql(self, text: str) -> None:
        with PySQLXEngineSync(self._environment["PYSQLX_URI"]) as connection:
            connection.raw_cmd(text)


CHECKS: dict[str, Callable[[Session, str], object]] = {
    "ini": Session._ini,
    "env": Session._env,
    "yaml": Session._yaml,
    "sql": Session._sql,
    "toml": lambda _, text: tomllib.loads(text),
    "json": lambda _, text: json.loads(text),
}
"""Of each language that is not run: who reads it."""


def _only_looks(text: str) -> bool:
    lines = text.splitlines()
    return bool(lines) and all(line.startswith(LOOKS) for line in lines)


def _commands(value: Any) -> list[list[str]]:
    """Whatever is called `command` in a document."""
    if isinstance(value, dict):
        found = [one for each in value.values() for one in _commands(each)]
        command = value.get("command")
        if isinstance(command, str):
            found.append(shlex.split(command))
        elif isinstance(command, list):
            found.append([str(word) for word in command])
        return found
    if isinstance(value, list):
        return [one for each in value for one in _commands(each)]
    return []
