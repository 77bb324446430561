"""docs/report.png, of a report of an image: `make recordings IMAGE=NAME`.

Runs with the tools of docs/requirements.txt, and the machine's own Chromium.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from playwright.sync_api import sync_playwright

PICTURE = Path(__file__).resolve().parents[1] / "docs" / "report.png"
SIZE = {"width": 1000, "height": 1250}


def draw(report: Path, browser: str) -> None:
    """The upper part of a report, as it is on a desk."""
    with sync_playwright() as playwright:
        sandbox = [] if os.geteuid() else ["--no-sandbox"]
        chromium = playwright.chromium.launch(executable_path=browser, args=sandbox)
        page = chromium.new_page(viewport=SIZE)
        page.goto(report.resolve().as_uri())
        page.screenshot(path=PICTURE)
        chromium.close()


if __name__ == "__main__":
    draw(Path(sys.argv[1]), sys.argv[2])
