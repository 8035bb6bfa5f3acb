"""What runs the code blocks notices those that do not do what they say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.workers.runs import run_environment

from .blocks import ROOT, Block, blocks
from .session import Mismatch, Session


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    with Session(tmp_path, run_environment(tmp_path, {}), {}) as session:
        yield session


def block(language: str, text: str, title: str = "") -> Block:
    return Block(ROOT / "README.md", 1, language, title, text, "")


@pytest.mark.parametrize(
    ("language", "text", "said"),
    [
        ("cobol", "DISPLAY 'hello'.", "nobody knows how to run 'cobol'"),
        ("python", "1 / 0\n", "ZeroDivisionError"),
        ("python", "import asyncio\nawait asyncio.sleep(0)\nprint(undefined)\n", "NameError"),
        ("bash", "false\necho this hides nothing\n", "status 1"),
        ("bash", "no_such_command\n", "status 127"),
        ("bash", "kubectl exec deploy/x -- pysqlx-ctl statsu\n", "invalid choice: 'statsu'"),
        ("bash", "kubectl apply -f nowhere.yaml\n", "there is no nowhere.yaml"),
        ("bash", "kubectl create secret generic x --from-file=nowhere\n", "there is no nowhere"),
        ("bash", "kubectl aply -f x\n", "not one of"),
        ("bash", "pip install 'pysqlx-engine[nothing]'\n", "no extras {'nothing'}"),
        ("bash", "make no-such-target\n", "No rule to make target"),
        ("console", "$ echo one\ntwo\n", "'two'"),
        ("console", "$ echo one\none\ntwo\n", "'two'"),
        ("console", "a line that nobody printed\n", "begins with a command"),
        ("text", "nothing has printed this\n", "what prints this"),
        ("ini", "[Service]\nExecStart=/srv/bin/pysqlx-ctl coordinator --max-size\n", "SystemExit: 2"),
        ("env", "PYSQLX_WORKER=4\n", "did you mean PYSQLX_WORKERS"),
        ("env", "PYSQLX_WORKERS=many\n", "1 to 4096"),
        ("yaml", "a: [1\n", "ParserError"),
        ("yaml", "containers: [{command: [pysqlx-run, --no-such-option, worker.py]}]\n", "SystemExit: 2"),
        ("toml", "a = \n", "TOMLDecodeError"),
        ("json", "{'a': 1}\n", "JSONDecodeError"),
    ],
)
def test_a_wrong_block_is_noticed(session: Session, language: str, text: str, said: str) -> None:
    with pytest.raises(Mismatch, match=re.escape(said)):
        session.do(block(language, text))


def test_what_is_printed_is_compared_line_by_line(session: Session) -> None:
    session.do(block("python", "x = 41\n"))
    session.do(block("python", "print(x + 1)\n"))
    session.do(block("text", "42\n"))
    with pytest.raises(Mismatch, match="43"):
        session.do(block("text", "43\n"))
    session.do(block("console", "$ export X=1\n$ echo $X 12345\n1 99999\n"))
    session.finish()


def test_a_terminal_that_ends_badly_is_noticed(session: Session) -> None:
    session.do(block("console", "$ echo up && exit 3\nup\n", "terminal 1"))
    with pytest.raises(Mismatch, match="3"):
        session.finish()


def test_somebody_has_to_look_whether_a_terminal_is_up(session: Session) -> None:
    session.do(block("bash", "true\n", "terminal 1"))
    with pytest.raises(Mismatch, match="terminal 1"):
        session.finish()


def test_a_module_that_nobody_uses_is_noticed(session: Session) -> None:
    session.do(block("python", "print('hello')\n", "hello.py"))
    session.do(block("python", "print('bye')\n", "bye.py"))
    session.do(block("console", "$ python hello.py\nhello\n"))
    with pytest.raises(Mismatch, match="'bye'"):
        session.finish()


@pytest.mark.parametrize("text", ["```\nx\n```\n", "text\n\n    indented\n", "```python hl_lines=1\nx\n```\n"])
def test_a_block_without_a_language_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr("tests.docs.blocks.ROOT", tmp_path)
    (tmp_path / "page.md").write_text(text)
    with pytest.raises(ValueError, match=r"page\.md:\d"):
        list(blocks(tmp_path / "page.md"))


def test_an_excuse_is_for_the_block_after_it(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("<!-- not run: a drawing -->\n```text\n--\n```\n\n```text\n--\n```\n")
    assert [one.excuse for one in blocks(tmp_path / "page.md")] == ["a drawing", ""]
