"""Rotations of channels: the known solution, a rotated copy found again, unequal channels and sizes."""

from __future__ import annotations

import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from torch import Tensor
from torch.nn.functional import interpolate
from torch.testing import assert_close

from dfmsd.losses.basis import LevelBasis, LevelMoments, PyramidBasis
from dfmsd.losses.functional import procrustes, standardize
from dfmsd.types import LevelSpec


def rotation(channels: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(channels, channels, generator=generator, dtype=torch.float64)).Q


def features(channels: int, seed: int = 1, images: int = 6, side: int = 8) -> Tensor:
    """Correlated channels of unlike scale and offset, as a detector's are."""
    generator = torch.Generator().manual_seed(seed)
    white = torch.randn(images, channels, side, side, generator=generator)
    mixed = torch.einsum("ij,njhw->nihw", torch.randn(channels, channels, generator=generator), white)
    return mixed * torch.linspace(0.1, 10, channels)[:, None, None] + torch.arange(channels)[:, None, None]


def turned(feature: Tensor, matrix: Tensor) -> Tensor:
    return torch.einsum("nihw,ij->njhw", feature.double(), matrix).float()


def fitted(teacher: Tensor, reference: Tensor) -> tuple[LevelBasis, float, float]:
    moments = LevelMoments(teacher.shape[1], reference.shape[1])
    for some, others in zip(teacher.split(2), reference.split(2), strict=True):
        moments.add(some, others)
    basis = LevelBasis(teacher.shape[1], reference.shape[1])
    return basis, *basis.fit_to(moments)


def test_the_rotation_is_that_of_scipy() -> None:
    first, second = (torch.randn(50, 7, dtype=torch.float64) for _ in range(2))
    expected, _ = orthogonal_procrustes(first.numpy(), second.numpy())
    assert_close(procrustes(first.T @ second), torch.from_numpy(expected))


@pytest.mark.parametrize(("rows", "columns"), [(5, 5), (7, 4), (4, 7)])
def test_the_rotation_keeps_lengths_as_far_as_the_channels_go(rows: int, columns: int) -> None:
    found = procrustes(torch.randn(rows, columns, dtype=torch.float64))
    short = min(rows, columns)
    gram = found.T @ found if rows > columns else found @ found.T
    assert_close(gram, torch.eye(short, dtype=torch.float64))


def white(channels: int) -> Tensor:
    """Channels without correlation: any rotation of them has the same deviations."""
    flat = features(channels).double().transpose(0, 1).flatten(1)
    flat = flat - flat.mean(dim=1, keepdim=True)
    flat = torch.linalg.qr(flat.T).Q.T * flat.shape[1] ** 0.5
    return flat.view(channels, 6, 8, 8).transpose(0, 1).float()


def test_a_rotated_copy_is_found_again() -> None:
    copy, matrix = white(8), rotation(8)
    teacher, reference = copy + 2, turned(copy, matrix)
    basis, before, after = fitted(teacher, reference)
    assert_close(standardize(basis(teacher), eps=0), standardize(reference, eps=0), atol=1e-4, rtol=1e-4)
    assert abs(before) < 0.5
    assert after == pytest.approx(1, abs=2e-3)


def test_the_correlation_after_the_fit_is_that_of_the_mapped_features() -> None:
    teacher, reference = features(6), features(6, seed=2) + features(6)
    basis, before, after = fitted(teacher, reference)

    def correlation(first: Tensor, second: Tensor) -> float:
        rows = [value.double().transpose(0, 1).flatten(1) for value in (first, second)]
        return torch.corrcoef(torch.cat(rows))[:6, 6:].diagonal().mean().item()

    assert before == pytest.approx(correlation(teacher, reference), abs=5e-3)
    assert after == pytest.approx(correlation(basis(teacher), reference), abs=5e-3)


def test_scale_and_offset_of_the_teachers_channels_do_not_matter() -> None:
    teacher, reference = features(5), features(5, seed=3)
    other = teacher * torch.tensor([2.0, 0.5, 3.0, 1.0, 7.0])[:, None, None] - 4
    mapped = [fitted(each, reference)[0](each) for each in (teacher, other)]
    assert_close(mapped[0], mapped[1], atol=2e-2, rtol=2e-2)  # the eps of the standardization


def test_the_finer_map_is_averaged() -> None:
    teacher, matrix = white(4), rotation(4)
    reference = turned(teacher, matrix)
    fine = interpolate(teacher, scale_factor=2, mode="nearest")  # whose averages are the map itself
    assert_close(fitted(fine, reference)[0].weight, fitted(teacher, reference)[0].weight, atol=1e-3, rtol=1e-3)


def test_a_constant_channel_gives_finite_numbers() -> None:
    teacher = features(4)
    teacher[:, 1] = 3.0
    basis, before, after = fitted(teacher, features(4, seed=5))
    assert basis(teacher).isfinite().all()
    assert abs(before) <= 1
    assert abs(after) <= 1


def test_a_pyramid_maps_only_the_levels_in_use_and_tells_their_new_channels() -> None:
    levels = [LevelSpec("t8", 6, 8), LevelSpec("t16", 6, 16), LevelSpec("t32", 6, 32)]
    references = {"t8": LevelSpec("p8", 4, 8), "t16": LevelSpec("p16", 5, 16)}
    basis = PyramidBasis(levels, references)
    assert basis.levels == (LevelSpec("t8", 4, 8), LevelSpec("t16", 5, 16), LevelSpec("t32", 6, 32))
    assert not basis.fitted
    pyramid = {"t8": features(6), "t16": features(6, seed=2, side=4), "t32": features(6, seed=3, side=2)}
    student = {"p8": features(4, seed=4), "p16": features(5, seed=5, side=4)}
    fits = basis.fit_to([torch.zeros(6, 3, 8, 8)], lambda _: pyramid, lambda _: student)
    assert basis.fitted
    assert set(fits) == {"t8", "t16"}
    mapped = basis(pyramid)
    assert {name: value.shape[1] for name, value in mapped.items()} == {"t8": 4, "t16": 5}


def test_a_saved_basis_is_loaded_as_it_was() -> None:
    teacher, reference = {"t8": features(6)}, {"p8": features(4, seed=4)}
    bases = [PyramidBasis([LevelSpec("t8", 6, 8)], {"t8": LevelSpec("p8", 4, 8)}) for _ in range(2)]
    bases[0].fit_to([torch.zeros(1, 3, 8, 8)], lambda _: teacher, lambda _: reference)
    bases[1].load_state_dict(bases[0].state_dict())
    assert bases[1].fitted
    assert torch.equal(bases[1](teacher)["t8"], bases[0](teacher)["t8"])
