"""Every page of the site as a browser shows it: on a desk and on a phone, light and dark."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from urllib.parse import unquote, urldefrag, urljoin

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page

from tests.docs.conftest import SITE

DESK, PHONE = ({"width": width, "height": 900} for width in (1280, 390))
PAGES = sorted(
    str(path.relative_to(SITE)) for path in SITE.rglob("*.html") if path.name != "404.html"
)
PICTURES = {
    "benchmarks.html": 1,
    "doctor.html": 1,
    "four-sparks.html": 1,
    "how-it-works.html": 3,
    "index.html": 1,
    "own-image.html": 1,
    "quickstart.html": 1,
    "troubleshooting.html": 1,
    "verify.html": 1,
}
"""Pages with pictures, and how many each has at least."""
SAMPLE = {
    "index.html", "doctor.html", "launch.html", "benchmarks.html", "reference/fleet.html",
    "troubleshooting/arguments.html",
}  # fmt: skip
"""One page of each kind; the others take minutes."""
OURS = {"exclude": [[".md-search"]]}
"""The theme's search has no name for readers of screens."""
RULES: dict[str, dict[str, list[str]]] = {"light": {}, "dark": {"runOnly": ["color-contrast"]}}
"""What is looked for in each scheme: in the second only what depends on it."""
WIDE = """() => [...document.querySelectorAll('article *')].filter(element => {
    for (let at = element; at.tagName !== 'ARTICLE'; at = at.parentElement)
        if (/auto|scroll/.test(getComputedStyle(at).overflowX)) return false;
    const box = element.getBoundingClientRect();
    return box.width > 0 && box.right > window.innerWidth + 1;
}).map(element => element.outerHTML.slice(0, 120))"""
"""What reaches beyond the window and is in nothing that scrolls."""


@pytest.fixture(scope="module")
def context(browser: Browser) -> Iterator[BrowserContext]:
    with browser.new_context(viewport=DESK, reduced_motion="reduce") as context:
        yield context


@pytest.fixture
def page(context: BrowserContext) -> Iterator[Page]:
    page = context.new_page()
    yield page
    page.close()


def test_there_are_pages() -> None:
    assert len(PAGES) > 20, "make docs"


@pytest.mark.parametrize("name", PAGES)
def test_a_page(page: Page, address: str, name: str) -> None:
    asked: list[str] = []
    wrong: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    said: list[ConsoleMessage] = []
    page.on("console", lambda message: said.append(message))  # noqa: PLW0108
    page.on("pageerror", lambda error: wrong.append(str(error)))
    page.on("requestfailed", lambda request: wrong.append(request.url))
    page.set_viewport_size(DESK)
    page.goto(f"{address}/{name}", wait_until="load")

    # Read without internet: nothing comes from another host.
    assert [url for url in asked if not url.startswith((address, "data:"))] == []
    assert_headings(page)
    assert_pictures(page, name)
    assert "\\|" not in "".join(page.locator("td").all_inner_texts())
    for size in (DESK, PHONE):
        page.set_viewport_size(size)
        assert page.evaluate(WIDE) == [], size
        width = page.evaluate("document.scrollingElement.scrollWidth")
        assert width <= size["width"], size
    # A file that is not there is an error on the console, too.
    assert [*wrong, *(line.text for line in said if line.type == "error")] == []


@pytest.mark.parametrize(
    "name",
    [name if name in SAMPLE else pytest.param(name, marks=pytest.mark.thorough) for name in PAGES],
)
def test_a_page_can_be_read_by_everyone(page: Page, address: str, name: str) -> None:
    page.goto(f"{address}/{name}")
    for scheme, rules in RULES.items():
        page.emulate_media(color_scheme=scheme)
        found = Axe().run(page, context=OURS, options=rules).response["violations"]
        assert [
            (one["id"], [node["html"][:120] for node in one["nodes"]][:3])
            for one in found
            if one["impact"] in ("serious", "critical")
        ] == [], scheme


def assert_headings(page: Page) -> None:
    """One title, and no level left out below it."""
    levels = page.evaluate(
        "[...document.querySelectorAll('article :is(h1,h2,h3,h4,h5,h6)')].map(h => +h.tagName[1])"
    )
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def assert_pictures(page: Page, name: str) -> None:
    """Each is there, and says in words what it shows."""
    images = page.evaluate(
        "[...document.querySelectorAll('article img')].map(i => "
        "({source: i.src, width: i.naturalWidth, words: i.alt}))"
    )
    assert len(images) >= PICTURES.get(name, 0)
    for image in images:
        assert image["width"] > 0, image
        assert len(image["words"]) > 10, image


def test_every_link_leads_to_a_page_and_a_heading_of_it() -> None:
    ids = {name: set(re.findall(r'\bid="([^"]+)"', (SITE / name).read_text())) for name in PAGES}
    broken = []
    for name in PAGES:
        text = (SITE / name).read_text()
        for link in re.findall(r'<(?:a|link|img|script)\b[^>]*?\b(?:href|src)="([^"]*)"', text):
            if re.match(r"[a-z]+:", link):
                continue
            path, anchor = urldefrag(urljoin(f"/{name}", link))
            there = unquote(path.lstrip("/")) or "index.html"
            if not (SITE / there).is_file() or (anchor and unquote(anchor) not in ids[there]):
                broken.append((name, link))
    assert broken == []


def test_search_finds_what_a_log_says(page: Page, address: str) -> None:
    page.goto(f"{address}/index.html")
    page.keyboard.press("/")
    page.keyboard.type("unknown or invalid runtime name", delay=1)
    first = page.locator(".md-search-result__link").first
    first.wait_for()
    assert "docker-and-its-runtimes" in (first.get_attribute("href") or "")
