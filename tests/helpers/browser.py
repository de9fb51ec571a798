"""Pages as a reader's browser shows them: Chromium without network."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="needs the extra `browser`")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs the extra `browser`")

SCREENSHOTS = Path(__file__).resolve().parents[2] / "build" / "screenshots"
PHONE, DESK = 375, 1200
CAMERA = ("--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream")
"""A camera that films a test card, for everyone who asks."""
SIDEWAYS = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


class Seen(NamedTuple):
    """A page, open."""

    page: Any
    said: list[str]
    """Messages of the console, errors, and what was asked of other places."""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no Chromium here: install Debian's package chromium, or another one")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=path, args=["--no-sandbox", *CAMERA])
        yield chromium
        chromium.close()


@contextmanager
def opened(browser: Any, place: Path | str, width: int, scheme: str, **options: Any) -> Iterator[Seen]:
    """Open a file without network, or the address of a folder that this machine serves."""
    address = place if isinstance(place, str) else place.as_uri()
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, offline=isinstance(place, Path), **options
    )
    page, said = context.new_page(), list[str]()
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(f"error: {error}"))
    page.on("request", lambda request: said.append(request.url) if is_foreign(request.url, address) else None)
    page.goto(address)
    yield Seen(page, said)
    context.close()


def is_foreign(url: str, address: str) -> bool:
    return url.startswith("http") and not url.startswith(address)


def serious_findings(page: Any) -> list[tuple[str, str]]:
    """What axe finds: rule and markup."""
    found = axe.Axe().run(page).response["violations"]
    return [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")]


def keep_picture(page: Any, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png", full_page=True)


def colour(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])
