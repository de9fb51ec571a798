"""The page that runs a student, in Chromium: its boxes are PyTorch's, and it asks nothing of the internet."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from PIL import Image
from tests.helpers.browser import DESK, PHONE, SIDEWAYS, Seen, browser, keep_picture, opened, serious_findings
from tests.helpers.exports import tiny

from dfmsd.detectors import Detector, load_detector, save_detector
from dfmsd.errors import DfmsdError
from dfmsd.exporting import exporter
from dfmsd.exporting.bundle import detect_padded, expected_objects
from dfmsd.exporting.standalone import infer
from dfmsd.exporting.web import export_web
from dfmsd.exporting.webruntime import find_runtime

__all__ = ["browser"]

pytestmark = pytest.mark.slow
LABELS = ("a", "<b>b</b>", "c")
SCORE = 0.2


class Served(SimpleHTTPRequestHandler):
    """What `python -m http.server` does, without its log."""

    def log_message(self, format: str, *args: Any) -> None: ...


@pytest.fixture(scope="module")
def pictures(tiny_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of several sizes and shapes, in gray and in color, one of them turned by its EXIF data."""
    folder = tmp_path_factory.mktemp("pictures")
    for place, file in enumerate(sorted((tiny_root / "val").iterdir())):
        image = Image.open(file)
        image = image.resize((image.width * (place + 1), image.height * 2), Image.Resampling.BICUBIC)
        image.save(folder / f"{place}.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.convert("RGB").save(folder / "turned.jpg", exif=exif, quality=95)
    image.convert("L").save(folder / "gray.png")
    return folder


@pytest.fixture(scope="module")
def student(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("student") / "my student"
    save_detector(tiny("fcos", LABELS), folder)
    return folder


@pytest.fixture(scope="module")
def site(student: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("onnxruntime")
    try:
        find_runtime(None)
    except DfmsdError as error:
        pytest.skip(str(error))
    folder = tmp_path_factory.mktemp("site") / "page"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exporter, "LATENCY_SECONDS", 0.0)
        export_web(student, folder, images=pictures, image_size=96)
    return folder


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Served, directory=str(site))) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@pytest.fixture
def see(browser: Any, address: str) -> Iterator[Any]:
    """Open the page, and wait for its model: ``see(width, scheme)``."""
    with ExitStack() as pages:

        def open_page(width: int = DESK, scheme: str = "light", **options: Any) -> Seen:
            seen = pages.enter_context(opened(browser, address, width, scheme, **options))
            seen.page.locator("#example:not([disabled])").wait_for(timeout=120_000)
            return seen

        yield open_page


def objects_on(page: Any, image: Path) -> list[dict[str, Any]]:
    """Open the file of an image on the page, and read the table of its objects."""
    page.locator("#score").fill("0.05")
    page.locator("#status").evaluate("status => { status.textContent = 'asked'; }")
    page.locator("#file").set_input_files(image)
    page.locator("#status", has_text="object").wait_for(timeout=60_000)
    rows = [row.locator("th, td").all_inner_texts() for row in page.locator("#objects tr").all()]
    return [
        {"class": LABELS.index(label), "score": float(score), "box": [float(value) for value in box]}
        for label, score, *box in rows
    ]


def test_its_boxes_are_those_of_pytorch(see: Any, student: Path, pictures: Path) -> None:
    page, said = see()
    detector: Detector = load_detector(student)
    objects = 0
    for file in sorted(pictures.iterdir()):
        expected = expected_objects(detect_padded(detector, file, 96), detector, 96, SCORE)
        found = infer.compare(expected, objects_on(page, file))
        assert (found.missing, found.new) == ([], []), file.name
        objects += len(found.gaps)
    assert objects >= 10
    assert said == []


def show_example(page: Any) -> None:
    page.locator("#example").click()
    page.locator("#status", has_text="object").wait_for(timeout=60_000)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [DESK, PHONE])
def test_it_looks_right_and_axe_finds_no_serious_issues(see: Any, width: int, scheme: str) -> None:
    page, _ = see(width, scheme, bypass_csp=True)  # the page's policy would block axe
    assert serious_findings(page) == []
    show_example(page)
    assert serious_findings(page) == []
    assert page.evaluate(SIDEWAYS) == 0
    picture, boxes = (page.locator(name).bounding_box() for name in ("#picture", "#boxes"))
    assert picture == boxes
    assert picture["width"] > 200
    assert page.evaluate("document.title") == "my student"
    assert "<b>b</b>" in page.locator("header p").inner_text()
    keep_picture(page, f"web-{width}-{scheme}")


def test_the_slider_hides_objects_without_running_the_network(see: Any) -> None:
    page, said = see()
    show_example(page)
    counts, words = [], []
    for score in ("0.05", "0.3", "0.95"):
        page.locator("#score").fill(score)
        counts.append(page.locator("#objects tr").count())
        words.append(page.locator("#status").inner_text())
    assert counts[0] > counts[1] > counts[2]
    assert words[0].startswith(f"{counts[0]} objects in ")
    assert len({text.partition(" in ")[2] for text in words}) == 1  # the time of the one run
    assert page.locator("#picture").get_attribute("aria-label") == f"Image with {counts[2]} objects"
    assert page.locator("#lowest").inner_text() == "0.95"
    assert said == []


def test_everything_is_done_with_the_keyboard(see: Any) -> None:
    page, _ = see(PHONE)
    for name in ("file", "camera", "example"):
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == name
    page.keyboard.press("Enter")
    page.locator("#status", has_text="object").wait_for(timeout=60_000)
    page.keyboard.press("Tab")
    page.keyboard.press("ArrowRight")
    assert page.locator("#lowest").inner_text() == "0.35"
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "wide"


def test_the_camera_runs_until_it_is_switched_off(see: Any) -> None:
    page, said = see()
    camera, status = page.locator("#camera"), page.locator("#status")
    camera.click()
    status.filter(has_text="object").wait_for(timeout=60_000)
    assert (camera.get_attribute("aria-pressed"), status.get_attribute("aria-live")) == ("true", "off")
    camera.click()
    page.locator("#camera[aria-pressed=false]").wait_for()
    page.wait_for_timeout(2000)  # the last frame
    before = page.locator("#picture").screenshot()
    page.wait_for_timeout(500)
    assert page.locator("#picture").screenshot() == before
    assert status.get_attribute("aria-live") == "polite"
    assert said == []


def test_what_is_no_image_is_named(see: Any, tmp_path: Path) -> None:
    page, said = see()
    (tmp_path / "notes.txt").write_text("no image")
    page.locator("#file").set_input_files(tmp_path / "notes.txt")
    page.locator("#status", has_text="notes.txt cannot be read").wait_for()
    show_example(page)
    assert said == []


def test_without_a_server_it_says_what_to_do(browser: Any, site: Path) -> None:
    with opened(browser, site / "index.html", PHONE, "light") as (page, _):
        page.wait_for_timeout(500)
        assert "python -m http.server" in page.locator("#status").inner_text()


def test_a_missing_model_is_told(browser: Any, site: Path, address: str, tmp_path: Path) -> None:
    model = site / "model.onnx"
    model.rename(tmp_path / "model.onnx")
    try:
        with opened(browser, address, PHONE, "light") as (page, _):
            page.locator("#status", has_text="The model cannot be loaded: ").wait_for(timeout=60_000)
    finally:
        (tmp_path / "model.onnx").rename(model)
