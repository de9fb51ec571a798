from __future__ import annotations

import pytest

from dfmsd.comparison.methods import parse_method, parse_plan, split_epochs, split_methods
from dfmsd.distillation.stages import StageConfig
from dfmsd.errors import DfmsdError

TEACHERS = ["weak", "strong"]


@pytest.mark.parametrize(
    ("text", "loss"),
    [
        ("pkd", {"name": "pkd"}),
        ("mgd[ratio=0]", {"name": "mgd", "ratio": 0}),
        ("mgd[weight=1e-3]", {"name": "mgd", "weight": 0.001}),
        ("mgd[weight=.5]", {"name": "mgd", "weight": 0.5}),
        (
            "dfmsd[enhancement=false,spatial=false,ratio=0.25]",
            {"name": "dfmsd", "enhancement": False, "spatial": False, "ratio": 0.25},
        ),
        ("dfmsd[enhancement=error+object]", {"name": "dfmsd", "enhancement": "error+object"}),
        (" pkd + mgd [ ratio = 0 ] ", [{"name": "pkd"}, {"name": "mgd", "ratio": 0}]),
        ("dfmsd[beta=0]@T1+T2", {"name": "dfmsd", "beta": 0}),
    ],
)
def test_losses_and_options(text: str, loss: object) -> None:
    assert parse_method(text).loss({}) == loss


def test_options_in_the_name_override_the_config() -> None:
    given = {"mgd": {"weight": 4.0, "ratio": 0.5}, "pkd": {"weight": 2.0}}
    assert parse_method("mgd[ratio=0]").loss(given) == {"name": "mgd", "weight": 4.0, "ratio": 0}
    assert parse_method("pkd+cwd").loss(given) == [{"name": "pkd", "weight": 2.0}, {"name": "cwd"}]


@pytest.mark.parametrize(
    ("text", "stages"),
    [
        ("none", [(None, 42)]),
        ("dfmsd", [("strong", 42)]),
        ("dfmsd@T1", [("weak", 42)]),
        ("dfmsd@T1&T2", [(["weak", "strong"], 42)]),
        ("dfmsd @ T1 & T2", [(["weak", "strong"], 42)]),
        ("dfmsd@T1+T1&T2", [("weak", 14), (["weak", "strong"], 28)]),
        ("dfmsd@T1:1+T1&T2:3", [("weak", 10), (["weak", "strong"], 32)]),
        ("dfmsd@T2&T1+T2", [(["strong", "weak"], 14), ("strong", 28)]),
        ("dfmsd@T1+T2", [("weak", 14), ("strong", 28)]),
        ("dfmsd@T2+T1", [("strong", 14), ("weak", 28)]),
        ("dfmsd@T2+T2", [("strong", 14), ("strong", 28)]),
        ("dfmsd@T1:1+T2:7", [("weak", 5), ("strong", 37)]),
        ("pkd+mgd@T2", [("strong", 42)]),
    ],
)
def test_plans(text: str, stages: list[tuple[str | list[str] | None, int]]) -> None:
    assert parse_method(text).stages(TEACHERS, 42) == [StageConfig(teacher=t, epochs=n) for t, n in stages]


@pytest.mark.parametrize(
    ("text", "stages"),
    [
        ("dfmsd@T1+T2[basis=former]", [StageConfig(14, "weak"), StageConfig(28, "strong", basis="former")]),
        ("dfmsd@T1:1+T2[basis=former]:7", [StageConfig(5, "weak"), StageConfig(37, "strong", basis="former")]),
        ("dfmsd @ T2 [basis = student]", [StageConfig(42, "strong", basis="student")]),
        ("dfmsd@T1&T2[basis=student]", [StageConfig(42, ["weak", "strong"], basis="student")]),
        ("dfmsd@T1[labels=false]+T1", [StageConfig(14, "weak", labels=False), StageConfig(28, "weak")]),
        (
            "pkd @ T1 [basis=own, labels = false]:1 + T2[labels=true]:2",
            [StageConfig(14, "weak", basis="own", labels=False), StageConfig(28, "strong")],
        ),
        (
            "dfmsd[ratio=0]@T1[basis=student]+T1&T2[basis=former]+T2[basis=own]",
            [
                StageConfig(7, "weak", basis="student"),
                StageConfig(14, ["weak", "strong"], basis="former"),
                StageConfig(21, "strong", basis="own"),
            ],
        ),
    ],
)
def test_stages_with_keys(text: str, stages: list[StageConfig]) -> None:
    assert parse_method(text).stages(TEACHERS, 42) == stages


@pytest.mark.parametrize("epochs", [3, 4, 5, 10, 12, 42, 97])
@pytest.mark.parametrize("shares", [[1], [1, 2], [2, 1], [1, 2, 3], [1, 1, 1], [0.01, 5]])
def test_epochs_are_split_by_shares(epochs: int, shares: list[float]) -> None:
    lengths = split_epochs(epochs, shares)
    assert sum(lengths) == epochs
    assert min(lengths) >= 1
    for length, share in zip(lengths, shares, strict=True):
        exact = epochs * share / sum(shares)
        assert length == 1 or abs(length - exact) <= (1 if min(shares) > 0.1 else len(shares))


@pytest.mark.parametrize(
    ("epochs", "shares", "expected"),
    [
        (8, [1, 7], [1, 7]),
        (16, [1, 7], [2, 14]),
        (24, [1, 3], [6, 18]),
        (21, [1, 2], [7, 14]),
        (5, [9, 1, 1], [3, 1, 1]),
    ],
)
def test_shares_that_divide_the_epochs_are_exact(epochs: int, shares: list[float], expected: list[int]) -> None:
    assert split_epochs(epochs, shares) == expected


def test_too_few_epochs_or_teachers_are_rejected() -> None:
    with pytest.raises(DfmsdError, match="epochs must be at least the number of stages, 2, got 1"):
        parse_method("dfmsd@T1+T2").stages(TEACHERS, 1)
    with pytest.raises(DfmsdError, match=r"dfmsd@T1&T3 needs T3, but there are 2 teacher"):
        parse_method("dfmsd@T1&T3").stages(TEACHERS, 6)
    with pytest.raises(DfmsdError, match=r"dfmsd@T1\+T3 needs T3, but there are 2 teacher"):
        parse_method("dfmsd@T1+T3").stages(TEACHERS, 6)


def test_ablations_and_controls_are_variants() -> None:
    methods = ["none", "pkd", "dfmsd", "pkd+mgd", "dfmsd@T1+T2", "mgd@T1+T2"]
    others = ["inherit", "mgd[ratio=0]", "dfmsd@T1", "dfmsd@T2", "dfmsd@T2+T1", "dfmsd@T2+T2", "dfmsd@T1:1+T2:7"]
    others += ["dfmsd@T1&T2", "dfmsd@T1+T1&T2", "dfmsd@T1+T2[basis=former]", "dfmsd@T1[labels=false]+T2"]
    assert [parse_method(name).variant for name in methods] == [False] * 6
    assert [parse_method(name).variant for name in others] == [True] * 11


def test_folder_names() -> None:
    names = ["dfmsd", "dfmsd@T1", "dfmsd[beta=0,ratio=0.5]@T1:1+T2:7", "pkd+mgd[ratio=0]"]
    slugs = [parse_method(name).slug(TEACHERS) for name in names]
    assert slugs == ["dfmsd", "dfmsd@T1", "dfmsd-beta=0,ratio=0.5@T1-1+T2-7", "pkd+mgd-ratio=0"]
    assert parse_method("dfmsd@T1+T1&T2:3").slug(TEACHERS) == "dfmsd@T1+T1_T2-3"
    assert parse_method("dfmsd@T1&T2").slug(TEACHERS) == "dfmsd@T1_T2"
    assert parse_method("dfmsd@T2").slug(TEACHERS) == "dfmsd"  # what `dfmsd` means for this pair
    assert parse_method("dfmsd@T1").slug(["one"]) == "dfmsd"
    assert parse_method("dfmsd@T1:1+T2[basis=former]:7").slug(TEACHERS) == "dfmsd@T1-1+T2-basis=former-7"
    assert parse_method("dfmsd@T2[basis=student]").slug(TEACHERS) == "dfmsd@T2-basis=student"
    assert parse_method("dfmsd@T1[labels=false]+T1:3").slug(TEACHERS) == "dfmsd@T1-labels=false+T1-3"


def test_lists_are_split_outside_brackets() -> None:
    assert split_methods("none, dfmsd[a=1,b=2]@T1+T2,pkd") == ["none", "dfmsd[a=1,b=2]@T1+T2", "pkd"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pkdd", r"'pkdd', position 1: unknown loss 'pkdd'; did you mean pkd\?"),
        ("pkd+mdg", r"position 5: unknown loss 'mdg'; did you mean mgd\?"),
        ("xyzzy", "position 1: unknown loss 'xyzzy'; available: .*dfmsd"),
        ("dfmsd[ratoi=0]", "position 1: loss.ratoi: dfmsd has no such option; did you mean ratio"),
        ("dfmsd[direction=up]", "position 1: loss.direction must be one of"),
        ("dfmsd[ratio]", r"position 12: expected `=`, got '\]'"),
        ("dfmsd[ratio=0", r"position 14: expected `,` or `\]`, got the end"),
        ("dfmsd[]", "position 7: expected the name of an option"),
        ("", "position 1: expected the name of a loss, got the end"),
        ("pkd+", "position 5: expected the name of a loss, got the end"),
        ("dfmsd@", "position 7: expected a teacher such as T1, got the end"),
        ("dfmsd@T0", "position 7: expected a teacher such as T1, got 'T0'"),
        ("dfmsd@T1&", "position 10: expected a teacher such as T1, got the end"),
        ("dfmsd@T1&T1", "position 10: T1 appears twice in one stage"),
        ("dfmsd@T1/T2", r"position 9: expected `&`, `\[`, `:`, `\+` or the end, got '/T2'"),
        ("dfmsd@T2[former]", r"position 10: expected `basis=` or `labels=`, got 'former\]'"),
        ("dfmsd@T2[basis=teacher]", r"position 16: expected auto, own, former or student, got 'teacher\]'"),
        ("dfmsd@T2[basis=student", r"position 23: expected `,` or `\]`, got the end"),
        ("dfmsd@T2[basis=former]", "position 16: former needs a stage before it with exactly one teacher"),
        ("dfmsd@T1&T2+T2[basis=former]", "position 22: former needs a stage before it with exactly one teacher"),
        ("dfmsd@T1+T2:2[basis=former]", r"position 14: expected .* or the end, got '\[basis=former\]'"),
        ("dfmsd@T1:0+T2", "shares must be positive"),
        ("dfmsd@T1[labels=no]+T1", r"position 17: expected true or false, got 'no\]\+T1'"),
        ("dfmsd@T1[basis=own,basis=own]", "position 20: basis appears twice in one stage"),
        ("pkd+crosskd@T1[labels=false]+T1", "position 1: crosskd compares predictions, which a stage without labels"),
        ("dfmsd@T1+T2[labels=false]", "position 26: the last stage needs labels"),
        ("pkd mgd", "unknown loss 'pkdmgd'"),
        ("none@T1", "position 1: unknown loss 'none'"),
    ],
)
def test_invalid_names_are_rejected_with_position(text: str, message: str) -> None:
    with pytest.raises(DfmsdError, match=message) as raised:
        parse_method(text)
    assert "\n" not in str(raised.value)


def test_plan_alone_is_parsed_like_that_of_a_method() -> None:
    assert parse_plan(" T1 + T2[basis=own]:3", "tune.space.plan") == parse_method("pkd@T1+T2[basis=own]:3").plan
    with pytest.raises(
        DfmsdError, match=r"tune.space.plan: 'T1-T2', position 3: expected .*, got '-T2'; examples: T1,"
    ):
        parse_plan("T1-T2", "tune.space.plan")
