"""The site builds, nothing on it is fetched from elsewhere, and its generated pages have all that there is."""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import pysqlx_engine
from pysqlx_engine import errors, workers
from pysqlx_engine.settings import LOG_SWITCHES, PREFIX, PoolSettings, RunSettings
from pysqlx_engine.workers import ctl, run

from .blocks import ROOT


def generate() -> ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def commands(parser: argparse.ArgumentParser) -> list[str]:
    inner = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return [parser.prog] + [name for one in inner for each in one.choices.values() for name in commands(each)]


def test_every_setting_is_described_with_what_it_allows() -> None:
    page = generate().settings_page()
    for model in (RunSettings, PoolSettings):
        for name, field in model.model_fields.items():
            assert re.search(rf"^\| `{PREFIX}{name.upper()}` .*{re.escape(field.description)}", page, re.M), name
    assert "`-w, --workers N` | `1` |" in page
    assert "| `--coordinator" not in page, "it starts a coordinator, and is no way to say which one to join"
    for switch in LOG_SWITCHES:
        assert re.search(rf"^\| `{switch}` \| \w+", page, re.M), switch


def test_every_command_is_there_with_its_help(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    page = generate().commands_page()
    names = commands(run._parser()) + commands(ctl._parser())
    assert len(names) > 20
    for name in names:
        assert f"\n## {name}\n\n```text\nusage: {name}" in page
    assert page.count("--graceful-timeout SECONDS") == 1


def test_a_page_that_mkdocs_yml_does_not_name_has_a_place(tmp_path: Path) -> None:
    module = generate()
    module.DOCS = tmp_path
    (tmp_path / "unnamed.md").write_text("# Unnamed\n")
    (tmp_path / "mkdocs.yml").write_text((ROOT / "docs" / "mkdocs.yml").read_text())
    (guides,) = (section["Guides"] for section in module.configuration()["nav"] if "Guides" in section)
    assert guides[-1] == "unnamed.md"


def build(source: Path, site: Path) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)],
        cwd=source, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, timeout=100, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout


def test_a_broken_link_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "index.md").write_text("# Home\n\n[there](#there)\n\n![a picture](none.svg)\n")
    written = yaml.safe_load((ROOT / "docs" / "mkdocs.yml").read_text())
    small = {name: written[name] for name in ("site_name", "docs_dir", "validation")}
    (tmp_path / "mkdocs.yml").write_text(yaml.safe_dump(small))
    status, output = build(tmp_path, tmp_path / "site")
    assert status == 1
    assert "#there" in output
    assert "none.svg" in output


def test_the_site_builds_without_a_broken_link_and_fetches_nothing(tmp_path: Path) -> None:
    source, site = tmp_path / "source", tmp_path / "site"
    subprocess.run([sys.executable, "docs/generate.py", str(source)], cwd=ROOT, check=True, timeout=60)
    status, output = build(source, site)
    assert status == 0, output
    pages = {str(page.relative_to(site)): page.read_text() for page in site.rglob("*.html")}
    assert {"index.html", "start.html", "guides/kubernetes.html", "reference/settings.html"} <= pages.keys()
    for name, page in pages.items():
        assert not re.findall(r"<(?:script|img|iframe|source)[^>]+src=\"?(?:https?:)?//", page), name
        assert not re.findall(r"<link[^>]+rel=\"?stylesheet[^>]+href=\"?(?:https?:)?//", page), name
    api = pages["reference/api.html"]
    for module, names in (
        ("pysqlx_engine", pysqlx_engine.__all__),
        ("pysqlx_engine.workers", workers.__all__),
        ("pysqlx_engine.errors", errors.__all__),
    ):
        for name in names:
            assert f'id="{module}.{name}"' in api, name
    assert 'id="pysqlx_engine.PySQLXEnginePool.connection"' in api
