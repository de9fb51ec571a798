"""Fonts that have the letters of names in any script."""

from __future__ import annotations

import logging
import unicodedata
from collections.abc import Iterable
from functools import cache, lru_cache
from pathlib import Path
from typing import Any

logger = logging.getLogger("dfmsd")

INVISIBLE = ("Cf", "Mn", "Zs", "Cc")
"""Categories of characters that need no glyph of their own: joiners, selectors of variants, blanks."""

# Matplotlib knows the fonts of every system; it is imported where names need it, since that takes a while.


@lru_cache
def installed_fonts() -> tuple[str, ...]:
    """Return the files of all fonts: Matplotlib's own, DejaVu Sans, then the system's, regular ones first."""
    from matplotlib import font_manager

    found = sorted(font_manager.findSystemFonts(), key=lambda file: ("regular" not in Path(file).name.lower(), file))
    return (font_manager.findfont("DejaVu Sans"), *found)


@lru_cache
def find_font(names: frozenset[str]) -> tuple[str, frozenset[str]]:
    """Find the font for names that are drawn together.

    Args:
        names: The names.

    Returns:
        The file of the font that has the letters of most of them, and the names of which it lacks some.
    """
    best: tuple[str, frozenset[str]] | None = None
    for font in installed_fonts():
        missing = frozenset(name for name in names if not _has_letters(font, name))
        if best is None or len(missing) < len(best[1]):
            best = font, missing
        if not missing:
            break
    assert best is not None  # Matplotlib brings a font
    return best


def find_families(texts: Iterable[str]) -> list[str]:
    """Return the font families with which Matplotlib can draw texts: its default, and others for what that lacks."""
    from matplotlib import font_manager

    families = ["sans-serif"]
    for text in texts:
        if text.isascii():
            continue
        font, missing = find_font(frozenset([text]))
        if not missing and font != installed_fonts()[0]:
            font_manager.fontManager.addfont(font)
            families.append(font_manager.FontProperties(fname=font).get_name())
    return list(dict.fromkeys(families))


@cache
def say_missing(name: str, instead: str) -> None:
    """Log, once, that a name cannot be drawn.

    Args:
        name: The name.
        instead: What is drawn in its place.
    """
    logger.warning("no installed font has the letters of %r: drawing %s; install one, such as Noto Sans", name, instead)


@lru_cache
def _open_font(file: str) -> Any:
    """Open a font that can be drawn in any size; None for others, such as colored emoji, and damaged ones."""
    from matplotlib.ft2font import FT2Font
    from PIL import ImageFont

    try:
        ImageFont.truetype(file, 12)
        return FT2Font(file)
    except (OSError, RuntimeError):
        return None


def _has_letters(font: str, text: str) -> bool:
    face = _open_font(font)
    letters = (letter for letter in text if unicodedata.category(letter) not in INVISIBLE)
    return face is not None and all(face.get_char_index(ord(letter)) for letter in letters)
