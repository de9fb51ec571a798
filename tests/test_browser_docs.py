"""The documentation as it opens from a folder: light and dark, wide and on a phone."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from tests.helpers.browser import DESK, PHONE, SIDEWAYS, browser, colour, keep_picture, opened, serious_findings

__all__ = ["browser"]
pytestmark = pytest.mark.slow
pytest.importorskip("mkdocs", reason="needs the extra `docs`")

ROOT = Path(__file__).resolve().parents[1]
PAGES = ["index", *sorted(page.stem for page in (ROOT / "docs").glob("*.md") if page.stem not in ("index", "README"))]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    subprocess.run([sys.executable, "-m", "mkdocs", "build", "-q", "--strict", "-d", folder], cwd=ROOT, check=True)
    return folder


@pytest.mark.parametrize(("width", "scheme"), [(DESK, "light"), (PHONE, "dark")])  # neither depends on the other
@pytest.mark.parametrize("name", PAGES)
def test_the_page_opens_without_a_word_and_is_readable(browser, site, name, width, scheme):
    with opened(browser, site / f"{name}.html", width, scheme) as (page, said):
        page.wait_for_load_state("load")
        page.wait_for_timeout(300)
        assert said == []
        assert page.evaluate(SIDEWAYS) == 0
        paper = sum(colour(page.evaluate("getComputedStyle(document.body).backgroundColor")))
        assert paper > 700 if scheme == "light" else paper < 150
        keep_picture(page, f"docs-{name}-{width}-{scheme}")
        assert serious_findings(page) == []
