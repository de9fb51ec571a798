"""Inputs that the fuzzer kept and crashes that it found."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.fuzz.target import check, make_root

CORPUS = sorted((Path(__file__).parent / "corpus").iterdir())
SOUND = {
    "alias.yaml",
    "bom.json",
    "bomb.xml",
    "empty.txt",
    "more-keys.json",
    "no-objects.json",
    "other-form.json",
    "sound.json",
    "sound.txt",
    "sound.xml",
    "sound.yaml",
}


@pytest.mark.parametrize("file", CORPUS, ids=lambda file: file.name)
def test_corpus_inputs_are_read_or_refused(file: Path, tmp_path: Path) -> None:
    read = check(file.read_bytes(), make_root(tmp_path))
    assert (read is not None) == (file.name in SOUND)
