from __future__ import annotations

from dfmsd.reporting.results import ModelRow, classes_section, results_section

METRICS = {"AP": 0.3, "AP50": 0.6, "APs": -1, "APm": 0.25, "APl": None, "per_class": {"a": 0.5, "b": 0.1, "c": -1}}


def test_unknown_costs_have_no_column():
    one = ModelRow("one", METRICS, 1000, 4, size=2_500_000)
    section = results_section([one, ModelRow("two")], ["note"])
    assert section.table.header == ("run", "AP", "AP50", "parameters", "epochs", "file, MB")
    assert section.table.rows == [
        ["one", "30.0", "60.0", "1,000", "4", "2.5"],
        ["two", "–", "–", "unknown", "unknown", "–"],
    ]
    section = results_section([ModelRow("one", METRICS, flops=1_234_000_000, latency=12.6)], [])
    assert dict(zip(section.table.header, section.table.rows[0], strict=True)) == {
        **{"AP": "30.0", "AP50": "60.0", "APs": "–", "APm": "25.0", "APl": "–"},
        **{"parameters": "unknown", "epochs": "unknown", "GFLOPs": "1.23", "CPU ms": "13"},
    }


def test_gain_over_baseline_by_class_and_size():
    before = {"AP": 0.2, "APm": 0.3, "per_class": {"a": 0.4, "b": 0.2, "c": -1}}
    section = classes_section([ModelRow("student", METRICS), ModelRow("baseline", before)], "student", "baseline")
    assert section.table.header == ("class", "AP", "baseline", "difference")
    assert section.table.rows == [
        ("a", "50.0", "40.0", "+10.0"),
        ("b", "10.0", "20.0", "-10.0"),
        ("c", "–", "–", "–"),
    ]
    figures = {figure.title: figure for figure in section.figures}
    assert figures["AP gain over baseline by class"].traces[0]["x"] == [10.0, -10.0]  # none has c
    assert figures["AP gain over baseline by object size"].traces[0]["x"] == [-5.0]
    assert [trace["name"] for trace in figures["AP by class"].traces] == ["student", "baseline"]


def test_no_differences_without_baseline():
    section = classes_section([ModelRow("student", METRICS)], "student", "baseline")
    assert section.table.header == ("class", "AP")
    assert [figure.title for figure in section.figures] == ["AP by class", "AP by object size"]
    assert classes_section([ModelRow("student")], "student", None).table is None


def test_student_has_the_first_color():
    names = ("teacher", "baseline", "student")
    section = classes_section([ModelRow(name, METRICS) for name in names], "student", "baseline")
    assert [trace["name"] for trace in section.figures[0].traces] == ["student", "baseline", "teacher"]
