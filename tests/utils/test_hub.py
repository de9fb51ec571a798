"""An unreachable hub, which is not asked again and again."""

from __future__ import annotations

from pathlib import Path

import pytest

from dfmsd.detectors import load_detector
from dfmsd.errors import DfmsdError
from dfmsd.utils.hub import ask_hub


@pytest.fixture(autouse=True)
def _unreachable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An address of this machine at which nothing listens, an empty cache, and no patience."""

    def sleep(seconds: float) -> None:
        raise AssertionError(f"waited {seconds} s to try again")

    url = "http://127.0.0.1:9/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", url)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", sleep)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        pytest.param("hf:nobody/nothing", "cannot be loaded from the .* hub", marks=pytest.mark.transformers),
        ("timm:resnet10t", "ImageNet weights are unavailable"),
    ],
)
def test_a_hub_that_cannot_be_reached_is_asked_once_and_quietly(
    reference: str, message: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DfmsdError, match=message):
        load_detector(reference)
    assert capfd.readouterr().err == ""


def test_what_is_in_the_cache_needs_no_hub(tmp_path: Path) -> None:
    with pytest.raises(Exception, match="refused"):
        ask_hub("somebody/something@main")
    (tmp_path / "models--somebody--something" / "snapshots").mkdir(parents=True)
    ask_hub("somebody/something@main")
