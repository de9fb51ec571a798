from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager

from dfmsd.detectors.prediction import Prediction
from dfmsd.utils import fonts
from dfmsd.utils.fonts import find_families, find_font, installed_fonts

DEJAVU = font_manager.findfont("DejaVu Sans")


@pytest.fixture(autouse=True)
def _forget() -> Iterator[None]:
    """Forget what was found with other fonts."""
    cached = (fonts.find_font, fonts.say_missing, fonts._open_font)
    for function in cached:
        function.cache_clear()
    yield
    for function in cached:
        function.cache_clear()


@pytest.fixture
def only_dejavu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "installed_fonts", lambda: (DEJAVU,))


@pytest.fixture
def cjk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A font of squares for two ideographs and for what scores consist of."""
    letters = {ord(letter): f"glyph{number}" for number, letter in enumerate("细胞 0123456789.", 1)}
    names = [".notdef", *letters.values()]
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for point in ((0, 900), (900, 900), (900, 0)):
        pen.lineTo(point)
    pen.closePath()
    square = pen.glyph()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder(names)
    builder.setupCharacterMap(letters)
    builder.setupGlyf(dict.fromkeys(names, square))
    builder.setupHorizontalMetrics(dict.fromkeys(names, (1000, 0)))
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": "Squares", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(tmp_path / "squares.ttf")
    monkeypatch.setattr(fonts, "installed_fonts", lambda: (DEJAVU, str(tmp_path / "squares.ttf")))
    return str(tmp_path / "squares.ttf")


def drawn(*names: str) -> np.ndarray:
    boxes = torch.tensor([[10.0, 60.0, 190.0, 190.0]]).repeat(len(names), 1)
    labels, image = torch.arange(len(names)) + 7, torch.zeros(3, 200, 400, dtype=torch.uint8)
    return np.asarray(Prediction(boxes, torch.ones(len(names)), labels, names, (200, 400), image).plot())


def test_the_first_font_is_one_that_every_installation_has() -> None:
    assert installed_fonts()[0] == DEJAVU


@pytest.mark.parametrize("name", ["клетка", "κύτταρο", "خلية", "zażółć", "a\u200db"])
def test_dejavu_has_the_letters_of_many_scripts(only_dejavu: None, name: str) -> None:
    assert find_font(frozenset([name, "cell"])) == (DEJAVU, frozenset())


def test_the_font_with_most_names_is_found(cjk: str) -> None:
    assert find_font(frozenset(["细胞"])) == (cjk, frozenset())
    assert find_font(frozenset(["细胞", "cell", "клетка"])) == (DEJAVU, frozenset(["细胞"]))
    assert find_families(["cell", "细胞", "клетка"]) == ["sans-serif", "Squares"]


def test_damaged_fonts_are_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    monkeypatch.setattr(fonts, "installed_fonts", lambda: (str(tmp_path / "broken.ttf"), DEJAVU))
    assert find_font(frozenset(["клетка"])) == (DEJAVU, frozenset())


def test_a_name_without_a_font_is_drawn_as_its_number_and_said_once(
    only_dejavu: None, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("supervision")
    picture = drawn("细胞")
    assert (picture == drawn("细胞")).all()
    assert (picture == drawn("细菌")).all()  # both are drawn as 7, and not as two empty squares
    assert caplog.messages == [
        f"no installed font has the letters of {name!r}: drawing its class number, 7; install one, such as Noto Sans"
        for name in ("细胞", "细菌")
    ]


def test_a_name_is_drawn_with_a_font_that_has_it(cjk: str, caplog: pytest.LogCaptureFixture) -> None:
    pytest.importorskip("supervision")
    with_font = drawn("细胞")
    assert not caplog.messages
    assert (drawn("клетка") != with_font).any()
    assert (drawn("cell") != drawn("клетка")).any()
