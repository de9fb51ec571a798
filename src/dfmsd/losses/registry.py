"""Table of the distillation losses."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import TypeVar

from dfmsd.errors import DfmsdError
from dfmsd.losses.amd import AMD
from dfmsd.losses.crosskd import CrossKD
from dfmsd.losses.cwd import CWD
from dfmsd.losses.detrdistill import DETRDistill
from dfmsd.losses.dfmsd import DFMSD
from dfmsd.losses.dmkd import DMKD
from dfmsd.losses.fgd import FGD
from dfmsd.losses.fitnet import FitNet
from dfmsd.losses.ld import LD
from dfmsd.losses.method import Method
from dfmsd.losses.mgd import MGD
from dfmsd.losses.pkd import PKD

M = TypeVar("M", bound=type[Method])

NAME = re.compile(r"[A-Za-z]\w*", re.ASCII)
"""Names that configs, method names of comparisons and modules of torch accept."""

LOSSES: dict[str, type[Method]] = {
    method.name: method for method in (AMD, CrossKD, CWD, DETRDistill, DFMSD, DMKD, FGD, FitNet, LD, MGD, PKD)
}
"""Name -> class of the loss of one level, built as ``Method(channels, Method.Options(**options))``."""


def register(name: str) -> Callable[[M], M]:
    """Register a `Method` under a name that `dfmsd.losses.build` and ``loss: {name: ...}`` in a config accept.

    ```python
    @dfmsd.losses.register("feature_l1")
    class FeatureL1(Method): ...
    ```

    Args:
        name: of the loss. Defining the same class again, as a repeated notebook cell does, replaces it.

    Raises:
        DfmsdError: the name is taken, or is not a letter followed by letters, digits and underscores; the class is no
            `Method`, or it has no dataclass ``Options``.
    """

    def decorate(method: M) -> M:
        if not (isinstance(method, type) and issubclass(method, Method)):
            raise DfmsdError(f"losses.register: {name!r} must be a subclass of dfmsd.losses.Method, got {method!r}")
        if not (isinstance(name, str) and NAME.fullmatch(name)):
            raise DfmsdError(
                f"losses.register: {name!r} is not a name; use a letter, then letters, digits and underscores"
            )
        if not is_dataclass(getattr(method, "Options", None)):
            raise DfmsdError(f"losses.register: {method.__name__}.Options must be a dataclass, which may be empty")
        if name in LOSSES and _origin(LOSSES[name]) != _origin(method):
            raise DfmsdError(f"losses.register: the name {name!r} is taken by {LOSSES[name].__name__}; choose another")
        method.name = name
        LOSSES[name] = method
        return method

    return decorate


def _origin(method: type[Method]) -> tuple[str, str]:
    return method.__module__, method.__qualname__
