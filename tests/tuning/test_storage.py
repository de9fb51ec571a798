from __future__ import annotations

from pathlib import Path

import optuna
import pytest

from dfmsd.errors import DfmsdError
from dfmsd.tuning.storage import explain_lost, open_storage, without_password


@pytest.mark.parametrize("scheme", ["sqlite", "journal"])
def test_storage_is_made_and_found_again(tmp_path: Path, scheme: str) -> None:
    url = f"{scheme}:///{tmp_path}/new/study"
    optuna.create_study(storage=open_storage(url), study_name="search")
    assert optuna.load_study(storage=open_storage(url), study_name="search").trials == []


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("somewhere", "Could not parse"),
        ("oracle9://host/name", "Can't load plugin"),
        ("postgresql://host.invalid/name", "pass a URL such as sqlite:///study.db, journal:///study.log"),
    ],
)
def test_storage_that_cannot_be_opened_is_named(url: str, reason: str) -> None:
    with pytest.raises(DfmsdError, match=rf"storage: cannot open {url} \(.*{reason}"):
        open_storage(url)


def test_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_text("not a database" * 100)
    with pytest.raises(DfmsdError, match=r"storage: cannot open sqlite:.*file is not a database"):
        open_storage(f"sqlite:///{tmp_path}/study.db")
    with pytest.raises(DfmsdError, match=r"storage: .* is a folder; name a file in it"):
        open_storage(f"sqlite:///{tmp_path}")


def test_storage_that_fails_later_is_explained_in_one_line(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/study.db"
    storage = open_storage(url)
    study = optuna.create_study(storage=storage)
    (tmp_path / "study.db").write_text("overwritten" * 1000)
    failed = r"storage: sqlite:.* has failed \(.*\); repeat the command to continue"
    with pytest.raises(DfmsdError, match=failed), explain_lost(url):
        study.ask()


def test_passwords_are_not_shown() -> None:
    assert without_password("mysql://me:secret@host/name") == "mysql://me:***@host/name"
    assert without_password("sqlite:///a:b@c") == "sqlite:///a:b@c"
