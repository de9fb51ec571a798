from __future__ import annotations

import json

import numpy as np
import pytest

from dfmsd.errors import DfmsdError
from dfmsd.reporting.records import read_run


def test_reads_every_file(make_run):
    record = read_run(make_run())
    assert record.metrics["AP"] == 0.4174
    assert record.config.startswith("seed: 0")
    np.testing.assert_allclose(record.log.columns["loss"][:3], [3.0, 2.9, 2.8])
    np.testing.assert_array_equal(record.log.stages, [1] * 6 + [2] * 6)
    assert np.isnan(record.log.columns["pearson/p4"][6:]).all()
    assert record.log.not_finite == {}
    assert record.terms == ["loss", "task/classification", "mask/p3", "sfa/p3", "lr"]
    assert record.correlations == ["pearson/p3", "pearson/p4"]


def test_terms_of_several_teachers_are_separate(make_run):
    folder = make_run()
    (folder / "log.csv").write_text(
        "step,epoch,stage,loss,task/cls,T1.mask/p3,T2.mask/p3,T1.pearson/p3,T2.pearson/p3\n0,0,1,3,1,1,1,0.5,0.25\n"
    )
    record = read_run(folder)
    assert record.terms == ["loss", "task/cls", "T1.mask/p3", "T2.mask/p3"]
    assert record.correlations == ["T1.pearson/p3", "T2.pearson/p3"]
    assert record.distills


def test_empty_folder_is_all_none(tmp_path):
    record = read_run(tmp_path)
    assert (
        record.metrics is record.student is record.environment is record.config is record.log is record.epochs is None
    )
    assert record.parameters is record.trained_epochs is None
    assert not record.distills


@pytest.mark.parametrize(("stages", "epochs"), [(1, 2), (3, 6)])
def test_epochs_are_counted_over_all_stages(make_run, stages, epochs):
    assert read_run(make_run(stages=stages)).trained_epochs == epochs


def test_epochs_restarting_in_each_stage_are_counted(make_run):
    folder = make_run()
    rows = ["step,epoch,stage,loss", "0,0,1,1", "1,1,1,1", "2,0,2,1", "3,1,2,1"]
    (folder / "log.csv").write_text("\n".join(rows))
    assert read_run(folder).trained_epochs == 4


def test_a_run_without_stages_counts_its_epochs(make_run):
    folder = make_run()
    (folder / "log.csv").write_text("step,epoch,stage,loss\n0,0,,1\n1,0,,1\n2,1,,1\n")
    assert read_run(folder).trained_epochs == 2


def test_student_json_overrides_environment(make_run):
    folder = make_run()
    assert read_run(folder).parameters == 1234567
    (folder / "student.json").write_text(json.dumps({"parameters": 99}))
    assert read_run(folder).parameters == 99


@pytest.mark.parametrize("distills", [True, False])
def test_distillation_is_recognized_by_its_terms(make_run, distills):
    assert read_run(make_run(distills=distills)).distills is distills


def test_nan_is_counted_but_empty_cells_are_not(make_run):
    folder = make_run()
    (folder / "log.csv").write_text("step,epoch,stage,loss,mask/p3\n0,0,1,nan,\n1,0,1,inf,0.5\n2,0,1,1.0,0.5\n")
    assert read_run(folder).log.not_finite == {"loss": 2}


def test_a_factor_of_an_earlier_version_has_todays_name(make_run):
    folder = make_run()
    (folder / "log.csv").write_text("step,epoch,stage,balance/loss,T2.balance/loss\n0,0,1,2.0,3.0\n")
    columns = read_run(folder).log.columns
    assert (columns["balance"], columns["T2.balance"]) == (2.0, 3.0)


def test_truncated_last_row_is_read(make_run):
    folder = make_run()
    (folder / "log.csv").write_text("step,epoch,stage,loss\n0,0,1,2.5\n1,0")
    log = read_run(folder).log
    np.testing.assert_array_equal(log.columns["step"], [0, 1])
    np.testing.assert_array_equal(log.columns["loss"], [2.5, np.nan])


def test_header_without_rows_is_no_log(make_run):
    folder = make_run()
    (folder / "log.csv").write_text("step,epoch,stage,loss\n")
    assert read_run(folder).log is None


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("metrics.json", '{"AP": 0.', "metrics.json is damaged"),
        ("metrics.json", "[1]", "holds a list, expected an object"),
        ("log.csv", "step,epoch,loss\n0,0,1\n", "has no column 'stage'"),
        ("epochs.csv", "epoch,step,stage,AP\n0,1,1,good\n", "column 'AP': 'good' is not a number"),
    ],
)
def test_damaged_files_raise_one_line_errors(make_run, name, content, message):
    folder = make_run()
    (folder / name).write_text(content)
    with pytest.raises(DfmsdError, match=message) as caught:
        read_run(folder)
    assert "\n" not in str(caught.value)


def test_missing_folder_is_rejected(tmp_path):
    with pytest.raises(DfmsdError, match="no run folder"):
        read_run(tmp_path / "typo")
