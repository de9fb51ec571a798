"""Two processes with half of the batch each compute the gradients of one process with the whole batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tests.helpers.two_processes import COUNTING, FEATURES, LEVELS, TASKS, WORLD, everything, together
from torch.testing import assert_close

from dfmsd.errors import DfmsdError
from dfmsd.utils.distributed import (
    broadcast_from_first,
    check_process_counts,
    check_rank,
    explain_lost_process,
    process_sum,
    shared_step,
    statistics_sum,
    statistics_world_size,
)

EXACT = {"rtol": 1e-9, "atol": 1e-12}
"""Tolerance in float64, where only the order of sums differs."""
NORMS = {"rtol": 1e-5, "atol": 1e-7}
"""Tolerance for balancing, which measures norms in float32, and for FCOS and GFL, which compute in it."""
Found = dict[str, dict[str, torch.Tensor]]


TORCHRUN = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}


@pytest.mark.parametrize(
    ("variables", "processes", "refused"),
    [
        ({}, (1, 1), None),
        ({"RANK": "0", "LOCAL_RANK": "0"}, (1, 1), None),
        ({"RANK": "1", "LOCAL_RANK": "1"}, (1, 1), "RANK"),
        ({"LOCAL_RANK": "1"}, (1, 1), "LOCAL_RANK"),
        ({"LOCAL_RANK": "1", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}, (1, 1), "LOCAL_RANK"),
        ({"RANK": "1", "WORLD_SIZE": "2"}, (1, 1), "RANK"),
        (TORCHRUN, (1, 1), None),  # a teacher's training has started this process
        ({"LOCAL_RANK": "1"}, (2, 1), None),
        ({"SLURM_PROCID": "3"}, (1, 1), "SLURM_PROCID"),
        ({"SLURM_PROCID": "3"}, (4, 1), None),
    ],
)
def test_the_rank_of_another_job_is_refused(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], processes: tuple[int, int], refused: str | None
) -> None:
    for name in (*TORCHRUN, "SLURM_PROCID", "JSM_NAMESPACE_RANK"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if refused is None:
        check_rank(processes)
        return
    with pytest.raises(DfmsdError, match=f"variable {refused} is .*: unset {refused} if another job left it behind"):
        check_rank(processes)


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> list[Found]:
    return together(everything, tmp_path_factory.mktemp("two"))


@pytest.fixture(scope="module")
def one() -> Found:
    torch.manual_seed(0)
    return everything(None)


def joined(two: list[Found], case: str) -> dict[str, Any]:
    """Combine gradients as DDP does: the mean over processes; those on features, which belong to images, are joined."""
    names = [level.name for level in LEVELS]
    first, second = (result[case] for result in two)
    return {
        name: torch.cat([first[name], second[name]]) / WORLD if name in names else (first[name] + second[name]) / WORLD
        for name in first
    }


@pytest.mark.parametrize("name", FEATURES)
def test_a_loss_has_the_gradient_of_the_whole_batch(two: list[Found], one: Found, name: str) -> None:
    assert_close(joined(two, f"loss: {name}"), one[f"loss: {name}"], **EXACT)


@pytest.mark.parametrize("name", TASKS)
def test_a_ddp_step_equals_that_of_the_whole_batch(two: list[Found], one: Found, name: str) -> None:
    key = f"task: {name}"
    assert_close(two[0][key], two[1][key], rtol=0, atol=0)  # weights stay equal
    single = "balanced" in name or TASKS[name][0] in COUNTING
    assert_close(two[0][key], one[key], **(NORMS if single else EXACT))


def test_a_sharded_step_equals_that_of_the_whole_batch(two: list[Found], one: Found) -> None:
    """With FSDP2 each process holds a part of the weights."""
    held = [int(result["sharded"].pop("held")) for result in two]
    whole = int(one["sharded"].pop("held"))
    assert sum(held) == whole
    assert max(held) < 0.6 * whole
    assert_close(two[0]["sharded"], one["sharded"], **EXACT)


def test_separate_statistics_change_the_gradient(two: list[Found], one: Found) -> None:
    separate, expected = joined(two, "each its own: pkd"), one["each its own: pkd"]
    assert float((separate["p3"] - expected["p3"]).norm() / expected["p3"].norm()) > 0.1


def test_processes_may_have_frames_of_different_sizes(two: list[Found], one: Found) -> None:
    first, second = (result["frames"] for result in two)
    for name in ("error", "correlation"):
        assert_close(first[name], second[name])
        assert_close(first[name], one["frames"][name], **EXACT)
    gradient = torch.cat([first["gradient"], second["gradient"]], dim=2) / WORLD
    assert_close(gradient, one["frames"]["gradient"], **EXACT)


def test_a_single_process_exchanges_nothing() -> None:
    value = torch.ones(3, requires_grad=True)
    with shared_step():
        assert process_sum(value) is value
        assert statistics_sum(value) is value
        assert broadcast_from_first(value).data_ptr() == value.data_ptr()
        assert statistics_world_size() == 1


@pytest.mark.parametrize(
    ("teachers", "student"),
    [([], 2), ([1], 1), ([1], 2), ([2], 2), ([1, 2], 2)],
)
def test_successive_trainings_may_use_one_number_of_processes(teachers: list[int], student: int) -> None:
    check_process_counts({f"{number}.yaml": (count, 1) for number, count in enumerate(teachers)}, (student, 1))


@pytest.mark.parametrize(("teachers", "student"), [([2], 1), ([2], 4), ([2, 1], 2), ([1, 2, 4], 4)])
def test_a_change_in_the_number_of_processes_is_refused(teachers: list[int], student: int) -> None:
    name = f"{teachers.index(2)}.yaml"
    with pytest.raises(DfmsdError, match=f"teacher {name} would be trained in 2 processes .* --config {name}"):
        check_process_counts({f"{number}.yaml": (count, 1) for number, count in enumerate(teachers)}, (student, 1))


@pytest.mark.parametrize(
    "said",
    [
        "[pair.cc:561] Connection closed by peer [127.0.0.1]:11938.",
        "NCCL error in: ProcessGroupNCCL.cpp:3763, remote process exited or there was a network error, NCCL 2.28",
        "ncclInternalError: Internal check failed.\nLast error:\nNet : Connection closed by remote peer node2<42830>",
    ],
)
def test_a_lost_process_is_explained(said: str) -> None:
    with pytest.raises(DfmsdError, match="another process of this run has ended"), explain_lost_process():
        raise RuntimeError(said)


def test_other_errors_pass_through() -> None:
    with pytest.raises(RuntimeError, match="shapes"), explain_lost_process():
        raise RuntimeError("shapes differ")


def test_the_others_take_over_what_the_first_process_has(two: list[Found], one: Found) -> None:
    assert one["copied"]["fitted"]
    for found in two:
        assert_close(found["copied"], one["copied"], rtol=0, atol=0)
