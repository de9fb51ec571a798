"""The process of one run: ``python -m dfmsd.comparison.worker RUN``. It stops when its standard input ends.

So it stops gracefully both when its parent asks and when its parent is killed.
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


def _follow_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # sys.stdin's own lock would trouble the end of the interpreter
    _thread.interrupt_main()


def main(run: Path) -> int:
    """Make a run or go on with it; gives the exit status."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job's parent may have it ignored
    keep_freed_memory()
    threading.Thread(target=_follow_parent, daemon=True).start()
    try:
        config = read_config(DistillConfig, run / "config.yaml")
        # the comparison has measured the teachers on all images
        distill(config, resume=True, allow_weak_teacher=True, check_images=1)
    except DfmsdError as error:
        print(f"dfmsd: error: {one_line(error)}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        return stopped.status
    except KeyboardInterrupt:
        return INTERRUPTED
    run_report(run)
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
