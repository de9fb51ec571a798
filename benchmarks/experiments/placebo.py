"""Is it the fit of a basis that helps, or any rotation? The plans of a comparison with random rotations.

    python benchmarks/experiments/placebo.py benchmarks/tables/digits.yaml --methods dfmsd@T2 dfmsd@T1+T2

The runs are those of ``dfmsd compare`` with the same config and seeds, except that every rotation is drawn at random.
Their AP belongs next to the table of the comparison. Writes ``benchmarks/results/placebo-<data>.json`` after each run
and skips the runs that it has.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from unittest.mock import patch

import torch
from _runs import run_missing
from torch import Tensor

from dfmsd.comparison.config import CompareConfig
from dfmsd.engine.config import DistillConfig
from dfmsd.engine.configfile import read_config
from dfmsd.engine.run import Result, distill


class RandomRotations:
    """Replacement of `procrustes` that ignores what it is given.

    Args:
        seed: of the rotations.
    """

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, cross: Tensor) -> Tensor:
        """Return a random matrix with orthonormal rows or columns, ``C_T x C_N``."""
        noise = torch.randn(cross.shape, dtype=cross.dtype, generator=self.generator)
        u, _, vh = torch.linalg.svd(noise, full_matrices=False)
        rotation: Tensor = u @ vh
        return rotation


def run_rotated(config: DistillConfig, seed: int) -> Result:
    """Run with rotations that are drawn at random."""
    with patch("dfmsd.losses.basis.procrustes", RandomRotations(seed)):
        return distill(config, overwrite=True)


def main() -> None:
    """Run what is missing and write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("--methods", nargs="+", required=True)
    parser.add_argument("--seeds", nargs="+", type=int)
    options = parser.parse_args()
    config = read_config(CompareConfig, options.config)
    seeds = options.seeds or config.seeds
    run_missing(config, "placebo", [(seed, name, name) for seed in seeds for name in options.methods], run_rotated)


if __name__ == "__main__":
    main()
