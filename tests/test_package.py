from __future__ import annotations

import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import dfmsd

ROOT = Path(__file__).parents[1]


def test_all_files_state_the_same_version() -> None:
    assert f'\nversion = "{dfmsd.__version__}"\n' in (ROOT / "pyproject.toml").read_text()
    assert f"\nversion: {dfmsd.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_the_source_archive_holds_what_its_make_targets_read() -> None:
    included = re.findall(r'^include = \[(".*")\]$', (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    assert {"src", "tests", "docs", "Makefile", "mkdocs.yml", "constraints.txt"} <= set(
        re.findall(r'"(.*?)"', included[0])
    )


def test_every_public_name_exists() -> None:
    assert dfmsd.__all__ == sorted(dfmsd.__all__)
    assert all(hasattr(dfmsd, name) for name in dfmsd.__all__)
    assert set(dfmsd.__all__) <= set(dir(dfmsd))
    with pytest.raises(AttributeError, match="no attribute 'mgd'"):
        _ = dfmsd.mgd  # type: ignore[attr-defined]


IMPORT = """
import sys, time
start = time.process_time()
import dfmsd
assert time.process_time() - start < 1
assert "torch" not in sys.modules
assert dfmsd.DetectorConfig().arch == "fcos"
assert "torchvision" not in sys.modules
"""


def test_the_import_is_fast_and_loads_no_torch() -> None:
    subprocess.run([sys.executable, "-c", IMPORT], check=True)


def test_no_function_shadows_a_module() -> None:
    root = Path(str(dfmsd.__file__)).parent
    modules = [path.parent.name for path in root.glob("*/__init__.py")]
    modules += [path.stem for path in root.glob("*.py") if not path.stem.startswith("__")]
    for name in modules:
        module = import_module(f"dfmsd.{name}")
        assert getattr(dfmsd, name) is module
    functions = [name for name in dfmsd.__all__ if name.islower() and name not in modules]
    assert all(callable(getattr(dfmsd, name)) for name in functions)

    import dfmsd.distillation.task as task

    assert task.DistillationTask is dfmsd.DistillationTask


def test_no_test_module_imports_another() -> None:
    shared = re.compile(r"^\s*(?:from|import) tests\.(?!helpers|fuzz|soak|\w+\.conftest)", flags=re.MULTILINE)
    tests = Path(__file__).parent
    assert not [path for path in tests.rglob("*.py") if shared.search(path.read_text(encoding="utf-8"))]
