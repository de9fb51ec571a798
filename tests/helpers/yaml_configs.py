"""Configs of a distillation as YAML: with one loss, and with sums of losses."""

DISTILL = """\
data: {root: somewhere, image_size: 96}
student: {backbone: resnet18}
stages:
  - {teacher: a, epochs: 1}
  - {teacher: b, epochs: 2, loss: {beta: 3.0}}
loss: {name: dfmsd, alpha: 0.5}
out: runs/x
"""

SUM = """\
stages:
  - {teacher: a, epochs: 1}
  - {teacher: b, epochs: 2, loss: [{name: cwd}, {name: fgd, relation: 1e-5}]}
loss: [{name: pkd}, {name: mgd, ratio: 0.5, weight: 1e-5}]
out: runs/x
"""
