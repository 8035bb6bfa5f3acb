"""The pictures of docs/dashboard.md: a shop at work for some minutes, and its page in a browser.

python -m tests.observer.screenshots MINUTES
"""

from __future__ import annotations

import re
import signal
import sys
import tempfile
import time
from pathlib import Path

import httpx
from playwright.sync_api import expect

from pysqlx_engine import PySQLXEngineSync
from pysqlx_engine.engine.driving import drive
from pysqlx_engine.workers.jobs.schema import migrate
from tests.servers import PostgresServer, free_port, postgresql_database
from tests.workers.runs import started

from .browser import launched

SHOP = Path(__file__).parent / "shop.py"
IMAGES = Path(__file__).parents[2] / "docs" / "images"
DESK, TELEPHONE = {"width": 1280, "height": 1060}, {"width": 360, "height": 740}


def main(minutes: float) -> None:
    url = f"http://127.0.0.1:{(port := free_port())}/"
    options = ("-w", "4", "--max-size", "12", "--name", "shop", "--dashboard", f"127.0.0.1:{port}")
    with (
        PostgresServer() as server,
        postgresql_database(server, "shop") as database,
        tempfile.TemporaryDirectory(prefix="pysqlx-test-") as directory,
        (Path(directory) / "log").open("w") as log,
    ):
        with PySQLXEngineSync(database.uri) as connection:
            drive(migrate(connection._engine))
        with started(Path(directory), *options, str(SHOP), PYSQLX_URI=database.uri, stdout=log.fileno()) as run:
            time.sleep(minutes * 60)  # the chart shows what has been
            take(url)
            run.send(signal.SIGQUIT)


def take(url: str) -> None:
    """Pictures of the page at `url`, at a moment when somebody waits."""
    IMAGES.mkdir(exist_ok=True)
    with httpx.Client(base_url=url, trust_env=False) as client:
        job = client.get("/api/jobs?state=discarded&task=book_parcel").json()["jobs"][0]["id"]
        client.post("/api/queues/reports/pause")
    with launched() as browser:
        for name, view, size, scheme in (
            ("light", "", DESK, "light"),
            ("dark", "", DESK, "dark"),
            ("phone", "", TELEPHONE, "light"),
            ("job", f"job/{job}", {"width": 1280, "height": 900}, "light"),
        ):
            page = browser.new_page(viewport=size, color_scheme=scheme)
            page.goto(f"{url}#/{view}")
            if not view:
                expect(page.get_by_role("slider")).to_be_visible()
                expect(page.locator(".verdict")).to_have_text(re.compile("used up"), timeout=300_000)
            else:
                expect(page.get_by_role("heading", name="Attempt 1")).to_be_visible()
            page.screenshot(path=IMAGES / f"dashboard-{name}.png", full_page=name == "phone")


if __name__ == "__main__":
    main(float(sys.argv[1]))
