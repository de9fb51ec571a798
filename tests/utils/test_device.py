from __future__ import annotations

import pytest
import torch

from dfmsd.errors import DfmsdError
from dfmsd.utils.device import (
    available_cores,
    default_device,
    read_device,
    supports_bf16,
    synchronize,
    total_memory,
)


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(True, False, "cuda"), (True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_the_default_device_is_a_gpu_if_one_is_available(
    cuda: bool, mps: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert default_device().type == expected


@pytest.mark.parametrize("device", ["cuda", "mps", "cpu"])
def test_only_the_device_in_use_is_synchronized(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: calls.append("cuda"))
    monkeypatch.setattr(torch.mps, "synchronize", lambda: calls.append("mps"))
    synchronize(torch.device(device))
    assert calls == [device] * (device != "cpu")


@pytest.mark.parametrize(("cuda", "native"), [(True, True), (True, False), (False, True)])
def test_bf16_counts_only_where_a_gpu_does_not_emulate_it(
    cuda: bool, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: cuda and (native or including_emulation)
    )
    assert supports_bf16() == (cuda and native)


def test_there_is_at_least_one_core() -> None:
    assert available_cores() >= 1


def test_the_memory_is_that_of_the_machine() -> None:
    memory = total_memory()
    assert memory is None or memory > 2**28


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(DfmsdError, match="device: cuda is not available on this machine; leave it out, or pass cpu"):
        read_device("cuda")


def test_a_device_that_is_there() -> None:
    assert read_device("cpu") == torch.device("cpu")
