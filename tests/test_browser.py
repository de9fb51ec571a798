"""Reports in Chromium without network, in light and dark schemes, at desktop and phone widths."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.helpers.browser import DESK, PHONE, SIDEWAYS, Seen, browser, colour, keep_picture, opened, serious_findings

from dfmsd import inspect_data
from dfmsd.comparison.results import PairResults, Row
from dfmsd.comparison.tables import write_tables
from dfmsd.engine.config import DistillConfig
from dfmsd.engine.run import distill
from dfmsd.reporting import report

__all__ = ["browser"]

pytestmark = pytest.mark.slow
EVIL = "<b>evil</b> \"'`--><img src=x onerror=document.title='hacked'></script><script>document.title='hacked'</script>"


@pytest.fixture(scope="module")
def reports(distill_config, tmp_path_factory) -> dict[str, Path]:
    """Reports of a trained run with its baseline, on data with a malicious class name, and of a comparison."""
    folder = tmp_path_factory.mktemp("browser")
    runs = {name: folder / "runs" / name for name in ("baseline", "distilled")}
    config: DistillConfig = distill_config(runs["distilled"])
    data = shutil.copytree(config.data.root, folder / "data")
    for file in (data / "annotations").iterdir():
        content = json.loads(file.read_text())
        content["categories"][0]["name"] = EVIL
        file.write_text(json.dumps(content))
    for name, run in runs.items():
        config = distill_config(run, loss={"name": "dfmsd", "weight": 2.0})
        config.stages[1] = replace(config.stages[1], basis="former")
        config.data.root = str(data)
        distill(config, no_distill=name == "baseline", allow_weak_teacher=True, check_images=1)
    pages = {
        "run": report(runs["distilled"], runs["baseline"], [], 4),
        "runs": report(folder / "runs", None, [], 4),
    }
    methods = {"none": (1, "baseline"), "dfmsd": (2, "distilled"), f"mgd[{EVIL}]": (1.5, "distilled")}
    rows = [
        Row(method, seed, 3, 0.1 * gain + 0.01 * seed, 0.2, 0.1, 1.0, 1.0, False, str(runs[run]))
        for method, (gain, run) in methods.items()
        for seed in range(3)
    ]
    (folder / "pair").mkdir()
    write_tables(PairResults(EVIL, {EVIL: 0.5}, rows, failed={EVIL: EVIL}), folder / "pair")
    inspect_data(data, out=folder / "inspection")
    return {**pages, "comparison": folder / "pair" / "report.html", "data": folder / "inspection" / "data.html"}


@pytest.fixture
def see(browser, reports, request) -> Iterator[Any]:
    """Open a report: ``see(name, width, scheme)``."""
    with ExitStack() as pages:

        def open_page(name: str, width: int, scheme: str, **options: Any) -> Seen:
            seen = pages.enter_context(opened(browser, reports[name], width, scheme, **options))
            seen.page.wait_for_function("document.querySelectorAll('[data-plot] .main-svg').length > 0")
            return seen

        yield open_page


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [DESK, PHONE])
@pytest.mark.parametrize("name", ["run", "runs", "comparison", "data"])
def test_page_renders_without_console_messages(see, name, width, scheme):
    page, said = see(name, width, scheme)
    assert said == []
    plots = page.locator("[data-plot]")
    assert plots.count() >= (1 if name == "data" else 3)
    for plot in plots.all():
        plot.scroll_into_view_if_needed()
        box = plot.bounding_box()
        assert box["width"] > 200
        assert box["height"] > 100
        # it contains lines, points or bars
        assert plot.locator(".scatterlayer path, .barlayer path").count() > 0
        assert plot.get_attribute("aria-label")
    assert page.evaluate(SIDEWAYS) == 0
    assert page.title() != "hacked"
    keep_picture(page, f"{name}-{width}-{scheme}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [DESK, PHONE])
@pytest.mark.parametrize("name", ["run", "comparison", "data"])
def test_axe_finds_no_serious_issues(see, name, width, scheme):
    page, _ = see(name, width, scheme, bypass_csp=True)  # the page's policy would block axe
    for summary in page.locator("summary").all():
        summary.click()
    assert serious_findings(page) == []


def test_page_follows_scheme_changes(see):
    page, _ = see("run", DESK, "light")
    ink = "getComputedStyle(document.querySelector('[data-plot] .xtick text')).fill"
    paper = "getComputedStyle(document.body).backgroundColor"
    light = colour(page.evaluate(ink)), colour(page.evaluate(paper))
    page.emulate_media(color_scheme="dark")
    page.wait_for_timeout(300)
    dark = colour(page.evaluate(ink)), colour(page.evaluate(paper))
    assert sum(light[0]) < 300 < 600 < sum(light[1])
    assert sum(dark[1]) < 150 < 500 < sum(dark[0])


def test_names_are_escaped(see):
    page, said = see("run", DESK, "light")
    names = page.locator("[data-plot] .ytick text").all_text_contents()
    assert any("<b>evil</b>" in name for name in names)
    assert page.locator("[data-plot] b, [data-plot] img").count() == 0
    assert page.locator("td, th").filter(has_text="<b>evil</b>").count() > 0
    assert said == []


def test_other_scripts_are_blocked(see):
    page, said = see("run", DESK, "light")
    page.evaluate("document.body.insertAdjacentHTML('beforeend', '<img src=\"data:,\" onerror=\"document.title=1\">')")
    page.wait_for_timeout(200)
    assert any("Content Security Policy" in line for line in said)
    assert page.title() != "1"


def test_keyboard_reaches_links_tables_and_numbers(see):
    page, _ = see("run", PHONE, "light")
    reached = set()
    for _ in range(80):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.tagName + '.' + document.activeElement.className"))
    assert {"A.", "SUMMARY.", "DIV.wide"} <= reached


def test_numbers_and_pictures_without_javascript(browser, reports):
    context = browser.new_context(java_script_enabled=False, viewport={"width": PHONE, "height": 900})
    page = context.new_page()
    page.goto(reports["run"].as_uri())
    assert page.locator("noscript").inner_text()
    assert page.locator("table").first.is_visible()
    assert page.locator("svg[role=img], img").count() > 4
    context.close()
