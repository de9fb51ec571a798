from __future__ import annotations

import pytest

from dfmsd.errors import DfmsdError
from dfmsd.utils.removed import Replaced, drop_removed

REMOVED = {"focus": 0.0, "target": "standardized"}


def test_removed_options_are_dropped_where_they_have_the_value_that_is_left() -> None:
    assert drop_removed({"alpha": 1.0, "focus": 0, "target": "standardized"}, REMOVED) == {"alpha": 1.0}
    assert drop_removed({"alpha": 1.0}, REMOVED) == drop_removed({"alpha": 1.0}, {}) == {"alpha": 1.0}


@pytest.mark.parametrize("value", [0.5, "0.0", None, [0.0]])
def test_other_values_are_refused_with_the_remedy(value: object) -> None:
    with pytest.raises(DfmsdError, match=r"^loss\.focus: .* was removed; leave focus out, which means 0\.0$"):
        drop_removed({"focus": value}, REMOVED, "loss.")


def test_the_refusal_names_the_successor_of_a_key_that_has_one() -> None:
    removed = {"compile_loss": Replaced(False, "compile: true")}
    assert drop_removed({"compile_loss": False}, removed) == {}
    message = (
        "^compile_loss: True was removed; write compile: true instead, or leave compile_loss out, which means False$"
    )
    with pytest.raises(DfmsdError, match=message):
        drop_removed({"compile_loss": True}, removed)
