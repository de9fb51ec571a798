"""Distillation losses between the feature pyramids, or the predictions, of two detectors.

```python
criterion = dfmsd.losses.build("dfmsd", student_levels, teacher_levels, alpha=2.0)
terms = criterion(student_pyramid, teacher_pyramid, boxes=boxes, size=(256, 256), stage=1)
loss = sum(terms.values())
```

`dfmsd.losses.functional` has the formulas as pure functions.
"""

from dfmsd.losses import functional
from dfmsd.losses.amd import AMD, AMDOptions
from dfmsd.losses.builder import build
from dfmsd.losses.config import (
    DEFAULT_LOSS,
    LossConfig,
    check_loss,
    check_options,
    head_methods,
    replace_loss,
    resolve_loss,
)
from dfmsd.losses.criterion import Criterion
from dfmsd.losses.criterion_sum import CriterionSum
from dfmsd.losses.crosskd import CrossKD, CrossKDOptions
from dfmsd.losses.cwd import CWD, CWDOptions
from dfmsd.losses.detrdistill import DETRDistill, DETRDistillOptions
from dfmsd.losses.dfmsd import DFMSD, DFMSDOptions
from dfmsd.losses.dmkd import DMKD, DMKDOptions
from dfmsd.losses.fgd import FGD, FGDOptions
from dfmsd.losses.fitnet import FitNet, FitNetOptions
from dfmsd.losses.ld import LD, LDOptions
from dfmsd.losses.method import HeadLevel, HeadMethod, HeadSide, LossContext, Method, QueryMethod, QueryPair
from dfmsd.losses.mgd import MGD, MGDOptions
from dfmsd.losses.pkd import PKD, PKDOptions
from dfmsd.losses.registry import LOSSES, register

__all__ = [
    "AMD",
    "CWD",
    "DEFAULT_LOSS",
    "DFMSD",
    "DMKD",
    "FGD",
    "LD",
    "LOSSES",
    "MGD",
    "PKD",
    "AMDOptions",
    "CWDOptions",
    "Criterion",
    "CriterionSum",
    "CrossKD",
    "CrossKDOptions",
    "DETRDistill",
    "DETRDistillOptions",
    "DFMSDOptions",
    "DMKDOptions",
    "FGDOptions",
    "FitNet",
    "FitNetOptions",
    "HeadLevel",
    "HeadMethod",
    "HeadSide",
    "LDOptions",
    "LossConfig",
    "LossContext",
    "MGDOptions",
    "Method",
    "PKDOptions",
    "QueryMethod",
    "QueryPair",
    "build",
    "check_loss",
    "check_options",
    "functional",
    "head_methods",
    "register",
    "replace_loss",
    "resolve_loss",
]
