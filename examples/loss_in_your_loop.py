"""Distill one torchvision FCOS into another in a plain PyTorch loop, with nothing of dfmsd but the loss."""

import torch
from torchvision.models.detection import FCOS
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

import dfmsd

CLASSES, SIDE, STEPS = 10, 128, 4


def detector(backbone: str) -> FCOS:
    """Build an FCOS with the levels P3 to P7."""
    more = LastLevelP6P7(256, 256)
    pyramid = resnet_fpn_backbone(backbone_name=backbone, weights=None, returned_layers=[2, 3, 4], extra_blocks=more)
    return FCOS(pyramid, CLASSES, min_size=SIDE, max_size=SIDE)


student, teacher = detector("resnet18"), detector("resnet34")  # yours would have weights
teacher.eval().requires_grad_(False)
pyramids: dict[str, dict[str, torch.Tensor]] = {}
student.backbone.register_forward_hook(lambda module, inputs, output: pyramids.update(student=output))
teacher.backbone.register_forward_hook(lambda module, inputs, output: pyramids.update(teacher=output))

strides = {"0": 8, "1": 16, "2": 32, "p6": 64, "p7": 128}  # by the names that the backbone gives its maps
levels = [dfmsd.LevelSpec(name, channels=256, stride=stride) for name, stride in strides.items()]
criterion = dfmsd.losses.build("dfmsd", levels, levels)
optimizer = torch.optim.AdamW([*student.parameters(), *criterion.parameters()], lr=1e-3)

for step in range(STEPS):
    images = [torch.rand(3, SIDE, SIDE) for _ in range(2)]  # your loader's
    boxes = [torch.tensor([[16.0, 24.0, 80.0, 96.0]]) for _ in images]
    targets = [{"boxes": box, "labels": torch.tensor([1])} for box in boxes]
    losses = student(images, targets)
    with torch.no_grad():
        teacher(images)
    terms = criterion(pyramids["student"], pyramids["teacher"], boxes=boxes, size=(SIDE, SIDE))
    distillation = torch.stack(list(terms.values())).sum()
    loss = torch.stack(list(losses.values())).sum() + distillation
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    print(f"step {step}: loss {loss.item():.2f}, of which distillation {distillation.item():.2f}")
