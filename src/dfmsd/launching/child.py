"""The inside of a process that a launcher has started."""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
from collections.abc import Callable

from dfmsd.engine.allocator import keep_freed_memory
from dfmsd.errors import INTERRUPTED, DfmsdError, Stopped, one_line


def carry_out(work: Callable[[], object]) -> int:
    """Do the work of this process, which is interrupted as by Ctrl-C when its standard input ends.

    That happens both when its parent asks and when its parent is killed.

    Args:
        work: what to do; after the interruption it saves what it has done.

    Returns:
        Exit status.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored if the parent runs in the background
    if hasattr(signal, "SIGUSR2"):  # before its time limit, some clusters signal all processes of a job, not only ours
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    keep_freed_memory()
    threading.Thread(target=_follow_parent, daemon=True).start()
    try:
        work()
    except DfmsdError as error:
        print(f"dfmsd: error: {one_line(error)}", file=sys.stderr)
        return 2
    except Stopped as stopped:
        return stopped.status
    except KeyboardInterrupt:
        return INTERRUPTED
    return 0


def _follow_parent() -> None:
    os.read(sys.stdin.fileno(), 1)  # not sys.stdin.read, whose lock would hang the interpreter's exit
    _thread.interrupt_main()
