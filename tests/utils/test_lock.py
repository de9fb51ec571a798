from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import AbstractContextManager
from pathlib import Path
from threading import Timer
from typing import Any

import pytest

from dfmsd.errors import DfmsdError
from dfmsd.utils import lock
from dfmsd.utils.lock import LOCK, WRITER, empty, is_locked, locked, refuse_writer, waiting

HOLD = """
import sys, time
from pathlib import Path
from dfmsd.utils import lock
lock.HEARTBEAT = 0.2
with lock.locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


def holder(folder: Path) -> subprocess.Popen[str]:
    """Start a process that holds a folder until it is killed."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    """Kill a process, and let the system forget it: until then its number counts as that of a running one."""
    process.kill()
    process.wait()


def refused(match: str) -> AbstractContextManager[Any]:
    return pytest.raises(DfmsdError, match=match)


def from_elsewhere(folder: Path) -> None:
    """Make a lock that a process on another machine could have left."""
    folder.mkdir()
    (folder / LOCK).write_text(f"filelock/2\npid=123\nhost=node7\nmode=lease\ntoken=a\nduration={lock.LEASE}\n")
    writer = {"process": 123, "since": "2026-01-02 03:04 UTC", "host": "node7", "namespace": None}
    (folder / WRITER).write_text(json.dumps(writer))


def test_a_folder_has_one_writer(tmp_path: Path) -> None:
    with holder(tmp_path / "run") as process:
        writer = rf"run is being written by process {process.pid} on host \S+ since \d{{4}}-.* UTC; wait for it"
        with refused(f"{writer}, or choose another `out`"), locked(tmp_path / "run"):
            pass
        with refused(f"{writer}$"):
            refuse_writer(tmp_path / "run")
        process.kill()
        process.wait()
        refuse_writer(tmp_path / "run")
        with locked(tmp_path / "run"):  # at once: on its own machine, a process can be looked up
            pass


def test_a_process_waits_for_a_lock_until_its_owner_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert not is_locked(folder)
    with holder(folder) as process:
        assert is_locked(folder)
        Timer(0.5, end, [process]).start()
        start = time.monotonic()
        with waiting(folder):
            assert time.monotonic() - start > 0.4
            assert is_locked(folder)
    assert not is_locked(folder)
    (tmp_path / "file").touch()
    with refused("out: cannot write to"), waiting(tmp_path / "file" / "run"):
        pass


def test_a_lock_leaves_nothing_behind(tmp_path: Path) -> None:
    refuse_writer(tmp_path / "new")
    with locked(tmp_path / "new" / "run"):
        assert json.loads((tmp_path / "new" / "run" / WRITER).read_text())["process"] == os.getpid()
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "new" / "run"):
        (tmp_path / "new" / "run" / "file").touch()
    assert [path.name for path in (tmp_path / "new" / "run").iterdir()] == ["file"]
    with refused("out: .*file is a file; name a folder"), locked(tmp_path / "new" / "run" / "file"):
        pass
    with refused("out: cannot write to .*file"), locked(tmp_path / "new" / "run" / "file" / "below"):
        pass


def test_emptying_a_folder_keeps_its_lock_and_what_its_links_point_to(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "image.jpg").touch()
    run = tmp_path / "run"
    with locked(run):
        (run / "folder" / "below").mkdir(parents=True)
        (run / "file").touch()
        (run / "link").symlink_to(tmp_path / "data")
        empty(run, last="config.yaml")
        assert {path.name for path in run.iterdir()} == {LOCK, WRITER}
    assert (tmp_path / "data" / "image.jpg").exists()


def test_the_lock_of_another_machine_holds_while_it_is_renewed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(lock, "LEASE", 0.6)
    monkeypatch.setattr(lock, "HEARTBEAT", 0.1)
    monkeypatch.setattr(lock, "POLL", 0.05)
    folder = tmp_path / "run"
    from_elsewhere(folder)
    renew = f"import os, time\nwhile True: time.sleep(0.1); os.utime({str(folder / LOCK)!r})"
    with subprocess.Popen([sys.executable, "-c", renew]) as process:
        try:
            time.sleep(0.3)
            with refused("written by process 123 on host node7 since 2026-01-02 03:04 UTC; wait"), locked(folder):
                pass
        finally:
            process.kill()
    with locked(folder):
        assert json.loads((folder / WRITER).read_text())["process"] == os.getpid()
    assert "waiting for a sign of life" in " ".join(capsys.readouterr().err.split())


def test_a_lock_without_a_name_is_a_lock(tmp_path: Path) -> None:
    with holder(tmp_path) as process:
        (tmp_path / WRITER).write_text("[")
        with refused("being written by another process"):
            refuse_writer(tmp_path)
        process.kill()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_process_does_not_keep_the_lock(tmp_path: Path) -> None:
    code = (
        "import multiprocessing, os, sys, time\nfrom pathlib import Path\nfrom dfmsd.utils.lock import locked\n"
        "with locked(Path(sys.argv[1])):\n"
        "    child = multiprocessing.get_context('fork').Process(target=time.sleep, args=(60,))\n"
        "    child.start()\n    print(child.pid, flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        process.kill()
        process.wait()
        with locked(tmp_path):
            os.kill(child, signal.SIGKILL)
