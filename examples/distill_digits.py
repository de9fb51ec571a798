"""Train a teacher, a baseline and a distilled student on the embedded digits, and compare them."""

import argparse
from pathlib import Path

import dfmsd

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--out", type=Path, default=Path("runs/examples/digits"), help="folder of the three runs")
parser.add_argument("--epochs", type=int, default=9, help="of the student and of its baseline")
arguments = parser.parse_args()
out = arguments.out

data = dfmsd.DataConfig(root="digits", image_size=128, batch_size=8, flip=0)  # a mirrored digit is another sign
big = dfmsd.DetectorConfig(arch="fcos", backbone="tf_efficientnet_lite0", fpn_channels=64, head_convs=2)
small = dfmsd.DetectorConfig(arch="fcos", backbone="mobilenetv3_small_050", fpn_channels=64, head_convs=2)
optim = dfmsd.OptimConfig(lr=2e-3)

dfmsd.train(big, data, out / "teacher", epochs=max(1, arguments.epochs // 2))
baseline = dfmsd.train(small, data, out / "baseline", epochs=arguments.epochs, optim=optim)
distilled = dfmsd.distill(small, out / "teacher", data=data, out=out / "student", epochs=arguments.epochs, optim=optim)
for name, result in {"baseline": baseline, "distilled": distilled}.items():
    print(f"{name}: AP {100 * (result.metrics['AP'] or 0):.1f}")

image = dfmsd.CocoDataModule(data).val.coco.records[0].path
drawing = out / "detections.png"
distilled.student.predict(image).plot().save(drawing)
print(f"detections in {image.name}: {drawing}")
