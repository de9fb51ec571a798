"""What a search looks for: the config, the space, and the config of each trial."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from dfmsd.engine.config import DistillConfig
from dfmsd.engine.saved_config import to_plain
from dfmsd.errors import DfmsdError
from dfmsd.tuning.config import TuneConfig
from dfmsd.tuning.folder import SearchFolder
from dfmsd.tuning.plans import CONFIG, Plan, build_plan, default_plans, refused_plans
from dfmsd.tuning.space import BASIS, PLAN, Space, build_space, first_values, plan_choices, with_values
from dfmsd.utils.console import console


@dataclass(frozen=True)
class Problem:
    """What is searched.

    Attributes:
        config: of a trial, before its parameters are set.
        original: the config as it is written, on all training images.
        space: the parameters.
        plans: name -> plan.
        first: parameters of the first trial.
        folder: of the search.
    """

    config: DistillConfig
    original: DistillConfig
    space: Space
    plans: Mapping[str, Plan]
    first: Mapping[str, Any]
    folder: SearchFolder

    def config_of(self, parameters: Mapping[str, Any], *, written: bool = False) -> DistillConfig:
        """Return the config of a trial.

        Args:
            parameters: of the trial.
            written: as `dfmsd distill` takes it: on all training images, and with a near teacher of its own.

        Raises:
            DfmsdError: the values do not go together.
        """
        values = {key: self.space[key].values.get(value, value) for key, value in parameters.items()}
        plan = self.plans[values.pop(PLAN, CONFIG)]
        basis = values.pop(BASIS, None)
        changed = with_values(self.original if written else self.config, values)
        stages = [
            stage if basis is None or stage.basis != "auto" else replace(stage, basis=basis)
            for stage in (plan.written if written else plan.stages)
        ]
        return replace(changed, stages=stages)

    def describe(self) -> dict[str, Any]:
        """Return what two processes must agree on to work on one study, as JSON types."""
        config = {key: value for key, value in to_plain(self.config).items() if key not in ("out", "max_hours")}
        space = {key: parameter.as_json() for key, parameter in self.space.items()}
        described: dict[str, Any] = json.loads(json.dumps({"config": config, "space": space}))
        return described


def pose(config: TuneConfig, class_names: Sequence[str], folder: SearchFolder) -> Problem:
    """Work out what is searched.

    Args:
        config: the distillation, and what is varied in it.
        class_names: of the data.
        folder: of the search.

    Raises:
        DfmsdError: an unknown parameter, a value that the config refuses, or a plan that does not apply.
    """
    trial, given = with_values(config.as_trial(), {}), config.tune.space
    stated = given.get(PLAN) is not None
    names = [] if PLAN in given else default_plans(trial)
    space = build_space(trial, given, names or [CONFIG])
    plans = {name: build_plan(trial, name, folder.teachers) for name in dict.fromkeys([*plan_choices(space), CONFIG])}
    for name, reason in refused_plans(trial, plans, class_names).items():
        if name == CONFIG or stated:
            raise DfmsdError(reason if name == CONFIG else f"tune.space.plan: {name} does not apply: {reason}")
        console.print(f"plan {name} does not apply: {reason}", highlight=False)
        del plans[name]
    if not stated and PLAN in space:
        space = build_space(trial, given, [name for name in names if name in plans])
    original = with_values(config.as_written(), {})
    return Problem(trial, original, space, plans, first_values(space, trial), folder)


def differing(former: Any, current: Any, key: str = "") -> list[str]:
    """Return the keys in which two descriptions differ, such as ``space.balance``."""
    if isinstance(former, dict) and isinstance(current, dict) and key.count(".") < 1:
        names = dict.fromkeys([*former, *current])
        return [
            found
            for name in names
            for found in differing(former.get(name), current.get(name), f"{key}.{name}" if key else name)
        ]
    return [] if former == current else [key]
