"""The code blocks of the README and of docs/, as a reader of Markdown sees them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_EXCUSE = re.compile(r"<!-- not run: (.+?) -->", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """One fenced block. Its title is the file that it is, or the terminal that it is typed into."""

    page: Path
    line: int
    language: str
    title: str
    text: str
    excuse: str
    """Why nobody runs it: what stands in `<!-- not run: ... -->` before it."""

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def is_terminal(self) -> bool:
        return self.title.startswith("terminal ")

    @property
    def is_file(self) -> bool:
        return bool(self.title) and not self.is_terminal


def blocks(page: Path) -> Iterator[Block]:
    """Raises ValueError for what is no fenced block with a language."""
    excuse = ""
    for token in MarkdownIt("commonmark").parse(page.read_text()):
        if token.type not in ("fence", "code_block"):
            found = _EXCUSE.search(token.content) if token.type == "html_block" else None
            excuse = found[1] if found is not None else ""
            continue
        assert token.map is not None
        line = token.map[0] + 1
        info = re.fullmatch(r'(\w+)(?: title="([^"]+)")?', token.info.strip())
        if token.type == "code_block" or info is None:
            raise ValueError(f'{page.relative_to(ROOT)}:{line}: a code block is fenced: ```LANGUAGE or title="..." too')
        yield Block(page, line, info[1], info[2] or "", token.content, excuse)
        excuse = ""


def inline_code(page: Path) -> Iterator[tuple[int, str]]:
    """What stands between single backticks, with the line of its paragraph."""
    for token in MarkdownIt("commonmark").enable("table").parse(page.read_text()):
        for child in token.children or []:
            if child.type == "code_inline":
                yield (token.map or [0])[0] + 1, child.content
