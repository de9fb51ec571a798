"""Process of one run: ``python -m dfmsd.launching.worker RUN [--no-report]``."""

from __future__ import annotations

import sys
from pathlib import Path

from dfmsd.engine.config import DistillConfig
from dfmsd.engine.configfile import read_config
from dfmsd.engine.run import distill
from dfmsd.launching.child import carry_out
from dfmsd.reporting import run_report
from dfmsd.runfolder import RunFolder

NO_REPORT = "--no-report"


def work(run: Path, *, report: bool = True) -> None:
    """Start or resume a run.

    Args:
        run: its folder.
        report: write its report.

    Raises:
        DfmsdError: the run fails.
        Stopped: it was interrupted, and is saved.
    """
    config = read_config(DistillConfig, RunFolder(run).config_file)
    # the teachers have been evaluated on all images before
    distill(config, resume=True, allow_weak_teacher=True, check_images=1)
    if report:
        run_report(run)


if __name__ == "__main__":
    sys.exit(carry_out(lambda: work(Path(sys.argv[1]), report=NO_REPORT not in sys.argv)))
