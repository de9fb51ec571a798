"""What a run folder states, and how a damaged one is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from dfmsd.errors import DfmsdError
from dfmsd.runfolder import RunFolder


def test_an_empty_folder_holds_no_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert not folder.exists
    assert not folder.finished
    assert folder.image_size() is None
    assert folder.data_root() is None
    assert folder.read_metrics() is None


def test_config_and_metrics_mark_a_run_and_its_end(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.config_file.write_text("data: {root: cells, image_size: 96}")
    assert folder.exists
    assert not folder.finished
    assert (folder.data_root(), folder.image_size()) == ("cells", 96)
    folder.metrics_file.write_text('{"AP": 0.5}')
    assert folder.finished
    assert folder.read_metrics() == {"AP": 0.5}


@pytest.mark.parametrize("text", ["", "[1]", "a: [", "\t"])
def test_a_damaged_config_is_named(tmp_path: Path, text: str) -> None:
    folder = RunFolder(tmp_path)
    folder.config_file.write_text(text)
    with pytest.raises(DfmsdError, match=r"config\.yaml is damaged"):
        folder.image_size()


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    folder = RunFolder(tmp_path)
    folder.metrics_file.write_text(text)
    with pytest.raises(DfmsdError, match=r"metrics\.json"):
        folder.read_metrics()
