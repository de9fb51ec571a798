from __future__ import annotations

import sys
from pathlib import Path

import pytest

from dfmsd.errors import DfmsdError
from dfmsd.utils.extras import check_extra, import_extra


def test_installed_packages_are_imported_and_accepted() -> None:
    import json

    assert import_extra("this", "json", "any") is json
    check_extra("this", ["json", "pathlib"], "any")
    check_extra("this", [], "any")


def test_missing_packages_are_named_with_their_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DfmsdError, match=r"^--format x needs a_b, c_d: pip install 'dfmsd\[x\]'$"):
        check_extra("--format x", ["a_b", "json", "c_d"], "x")
    with pytest.raises(DfmsdError, match=r"^share needs a_b \(No module named 'a_b'\): pip install 'dfmsd\[hub\]'$"):
        import_extra("share", "a_b", "hub")
    (tmp_path / "a_b.py").write_text("import c_d")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DfmsdError, match=r"needs a_b \(No module named 'c_d'\)"):
        import_extra("share", "a_b", "hub")
    assert "a_b" not in sys.modules
