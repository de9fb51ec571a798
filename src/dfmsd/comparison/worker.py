"""Process of one run of a comparison: ``python -m dfmsd.comparison.worker RUN [--no-report]``.

It stops gracefully when its standard input ends, which happens both when its parent asks and when its parent is killed.
"""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
from pathlib import Path

from dfmsd.engine.allocator import keep_freed_memory
from dfmsd.engine.config import DistillConfig
from dfmsd.engine.configfile import read_config
from dfmsd.engine.run import distill
from dfmsd.errors import INTERRUPTED, DfmsdError, Stopped, one_line
from dfmsd.reporting import run_report
from dfmsd.runfolder import RunFolder

NO_REPORT = "--no-report"


def main(run: Path, *, report: bool = True) -> int:
    """Start or resume a run.

    Args:
        run: its folder.
        report: write its report.

    Returns:
        Exit status.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored if the parent runs in the background
    keep_freed_memory()
    threading.Thread(target=_follow_parent, daemon=True).start()
    try:
        config = read_config(DistillConfig, RunFolder(run).config_file)
        # the comparison has already evaluated the teachers on all images
        distill(config, resume=True, allow_weak_teacher=True, check_images=1)
    except DfmsdError as error:
        print(f"dfmsd: error: {one_line(error)}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        return stopped.status
    except KeyboardInterrupt:
        return INTERRUPTED
    if report:
        run_report(run)
    return 0


def _follow_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # not sys.stdin.read, whose lock would hang the interpreter's exit
    _thread.interrupt_main()


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), report=NO_REPORT not in sys.argv))
