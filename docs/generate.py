"""Makes what the site is built from (`make docs`): the pages of docs/, the README as its home, pages generated from the
code, and what they link to in the repository. Nothing that is generated is committed.

    python docs/generate.py build/site-source
"""

from __future__ import annotations

import argparse
import ast
import inspect
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

import pysqlx_engine
from pysqlx_engine import errors, log_config, settings, workers
from pysqlx_engine.workers import ctl, run, testing

DOCS = Path(__file__).parent
ROOT = DOCS.parent
EXAMPLES = "reference/examples.md"
SHOWN = ("examples", "settings")
"""Directories whose files are shown on the page EXAMPLES."""
_LINK = re.compile(r"(?<=\]\()(?!https?:|#)([^)\s]+)(?=\))")
_LANGUAGES = {".py": "python", ".yaml": "yaml", ".service": "ini", ".env": "ini"}


# -- pages ----------------------------------------------------------------------------------------------------------


def home() -> str:
    """The README, with its links as they are from docs/."""
    text = (ROOT / "README.md").read_text()
    return _LINK.sub(lambda link: os.path.relpath(link[1], "docs"), text)


def api_page() -> str:
    """Every public name, for mkdocstrings to fill in."""
    parts = [
        "# The Python interface\n\nWhat is not on this page is not public, and may change.",
        _names("pysqlx_engine", pysqlx_engine.__all__, "Connections and pools."),
        "### Parameters of both pools\n\n::: pysqlx_engine.pool.face.PoolFace\n    options:\n      heading_level: 4"
        "\n      members: [__init__]",
        _names("pysqlx_engine.workers", workers.__all__, "The job queue. How to use it: [Jobs](../jobs.md)."),
        "### Tasks\n\nWhat `@queue.task` makes of a function.\n\n::: pysqlx_engine.workers.jobs.tasks.Task"
        "\n    options:\n      heading_level: 4",
        _names("pysqlx_engine.workers.testing", testing.__all__, "For tests of programs that enqueue jobs."),
        _names("pysqlx_engine.errors", errors.__all__, "Every exception."),
    ]
    return "\n\n".join(parts) + "\n"


def _names(module: str, names: list[str], text: str) -> str:
    return "\n\n".join([f"## {module}", text, *(f"::: {module}.{name}" for name in names)])


def settings_page() -> str:
    """Every setting, from the models that read them."""
    options = _options(run._parser()) | {f"standalone {k}": v for k, v in _options(_coordinator_parser()).items()}
    parts = [
        "# Settings",
        "Command line goes before environment, environment before settings file (`--settings FILE`, or the one that "
        "`PYSQLX_SETTINGS` names), settings file before default. An empty value counts as not set. A value that is not "
        "allowed is refused in one line, which says where it stands.",
    ]
    for title, text, model, prefix in (
        ("pysqlx-run", "What a run is told.", settings.RunSettings, ""),
        ("pysqlx-ctl coordinator", "What a coordinator alone is told.", settings.StandaloneSettings, "standalone "),
        (
            "Pools",
            "What a pool takes from the settings when its constructor was not told, and which coordinator it joins.",
            settings.PoolSettings,
            "no option",
        ),
        ("Joining", "What every process with a pool is told about joining.", settings.JoinSettings, "no option"),
    ):
        rows = ["| variable | option | default | meaning | allowed |", "| --- | --- | --- | --- | --- |"]
        told = _docstrings(model)
        for name, field in model.model_fields.items():
            option, meaning = options.get(f"{prefix}{name}", ("", ""))
            if not option and model is settings.StandaloneSettings:
                continue  # which coordinator to join is nothing for a coordinator
            default = "none" if field.default is None else str(field.default).lower()
            what = told.get(name, meaning)
            cells = [
                f"`{settings.PREFIX}{name.upper()}`",
                option and f"`{option}`",
                f"`{default}`",
                what,
                field.description,
            ]
            rows.append("| " + " | ".join(_cell(str(cell)) for cell in cells) + " |")
        parts += [f"## {title}", text, "\n".join(rows)]
    switches = _docstrings(log_config.LogConfig)
    parts += [
        "## Logging",
        "Switches, `true` or `false`, by default `false`; in code `LOG_CONFIG.NAME = True`.",
        "\n".join(
            [
                "| variable | |",
                "| --- | --- |",
                *(f"| `{name}` | {_cell(switches[name])} |" for name in settings.LOG_SWITCHES),
            ]
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _options(parser: argparse.ArgumentParser) -> dict[str, tuple[str, str]]:
    """Of each setting that has an option: how it is written, and what `--help` says that it does."""
    found = {}
    for action in parser._actions:
        # What is None when nobody says it is left to the settings. Others (--coordinator) only have a setting's name.
        if action.option_strings and action.default is None:
            written = ", ".join(action.option_strings) + (f" {action.metavar}" if action.metavar else "")
            found[action.dest] = (written, re.split(r": | \[", action.help or "")[0])
    return found


def _coordinator_parser() -> argparse.ArgumentParser:
    return dict(_parsers(ctl._parser()))["pysqlx-ctl coordinator"]


def _docstrings(model: type) -> dict[str, str]:
    """What stands below each field of a class and its bases."""
    found: dict[str, str] = {}
    for base in reversed(model.__mro__):
        if not base.__module__.startswith("pysqlx_engine"):
            continue
        (body,) = ast.parse(inspect.getsource(base)).body
        assert isinstance(body, ast.ClassDef)
        for field, below in zip(body.body, body.body[1:], strict=False):
            target = field.targets[0] if isinstance(field, ast.Assign) else getattr(field, "target", None)
            if isinstance(target, ast.Name) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
                found[target.id] = " ".join(str(below.value.value).split())
    return found


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def commands_page() -> str:
    """Each command and subcommand with its --help."""
    parts = ["# Commands", "What `--help` says."]
    for name, parser in (item for top in (run._parser(), ctl._parser()) for item in _parsers(top)):
        parts.append(f"## {name}\n\n```text\n{_help(parser)}```")
    return "\n\n".join(parts) + "\n"


def _parsers(parser: argparse.ArgumentParser) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    yield parser.prog, parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _parsers(command)


def _help(parser: argparse.ArgumentParser) -> str:
    """As wide as the site shows it, whoever's terminal it is."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "100"
    try:
        return parser.format_help()
    finally:
        del os.environ["COLUMNS"]
        if before is not None:
            os.environ["COLUMNS"] = before


def examples_page() -> str:
    """Every file that one would copy."""
    parts = ["# Examples\n\nThe files of `examples/` and `settings/`, as they are in the repository."]
    for top in SHOWN:
        parts.append(f"## {top}/ {{ #{top} }}")
        for path in sorted((ROOT / top).rglob("*")):
            name = str(path.relative_to(ROOT))
            if path.is_dir() and path.name != "__pycache__":
                parts.append(f"### {name}/ {{ #{_anchor(name)} }}")
            elif path.suffix in _LANGUAGES or path.name == "Dockerfile":
                language = _LANGUAGES.get(path.suffix, "docker")
                parts.append(f"### {name} {{ #{_anchor(name)} }}\n\n```{language}\n{path.read_text()}```")
    return "\n\n".join(parts) + "\n"


def _anchor(name: str) -> str:
    return re.sub(r"\W+", "-", name).strip("-")


def site_link(page: str, link: str) -> str:
    """A link of a page of docs/, as it is on the site: what is beside docs/ in the repository is elsewhere there."""
    address, hash_, anchor = link.partition("#")
    target = os.path.normpath(os.path.join("docs", os.path.dirname(page), address))
    if target.startswith("docs/"):
        return link
    if target == "README.md":
        target = "index.md"
    elif target.split("/", maxsplit=1)[0] in SHOWN:
        target, hash_, anchor = EXAMPLES, "#", _anchor(target)
    return os.path.relpath(target, os.path.dirname(page)) + hash_ + anchor


# -- the whole ------------------------------------------------------------------------------------------------------


def pages() -> dict[str, str]:
    """Every page of the site by its path, with links that work there."""
    found = {str(path.relative_to(DOCS)): path.read_text() for path in sorted(DOCS.rglob("*.md"))}
    found |= {
        "index.md": home(),
        "reference/api.md": api_page(),
        "reference/settings.md": settings_page(),
        "reference/commands.md": commands_page(),
        EXAMPLES: examples_page(),
    }
    return {page: _LINK.sub(lambda link, page=page: site_link(page, link[1]), text) for page, text in found.items()}


def linked_files() -> set[str]:
    """Files of the repository that pages link to, pictures and sources: they are put there as they are."""
    texts = {str(path.relative_to(DOCS)): path.read_text() for path in DOCS.rglob("*.md")} | {"index.md": home()}
    targets = {
        os.path.normpath(os.path.join("docs", os.path.dirname(page), link.partition("#")[0]))
        for page, text in texts.items()
        for link in _LINK.findall(text)
    }
    elsewhere = ("README.md", "docs", *SHOWN)
    return {each for each in targets if (ROOT / each).is_file() and each.split("/")[0] not in elsewhere}


def configuration() -> dict[str, Any]:
    """mkdocs.yml, where pages that it does not name are found at the end of the guides."""
    configured: dict[str, Any] = yaml.safe_load((DOCS / "mkdocs.yml").read_text())
    named = set(re.findall(r"[\w./-]+\.md", str(configured["nav"])))
    (guides,) = (section["Guides"] for section in configured["nav"] if "Guides" in section)
    guides += [page for page in pages() if page not in named]
    return configured


def main(directory: str) -> None:
    source = Path(directory)
    shutil.rmtree(source, ignore_errors=True)
    shutil.copytree(DOCS, source / "pages", ignore=shutil.ignore_patterns("*.md", "mkdocs.yml", "*.py", "__pycache__"))
    for page, text in pages().items():
        path = source / "pages" / page
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for file in linked_files():
        path = source / "pages" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, path)
    (source / "mkdocs.yml").write_text(yaml.safe_dump(configuration(), sort_keys=False))


if __name__ == "__main__":
    main(*sys.argv[1:])
