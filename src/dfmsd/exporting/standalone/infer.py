"""Detect objects with the model in this folder; it takes NumPy, Pillow and the model's runtime.

From Python: ``boxes, scores, classes = Detector("folder")(PIL.Image.open("photo.jpg"))``.
"""

from __future__ import annotations

import argparse
import colorsys
import io
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps
from PIL.PngImagePlugin import PngInfo

HERE = Path(__file__).resolve().parent
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
"""Images that are looked for in folders."""
DAMAGED = (OSError, ValueError, LookupError, TypeError)
"""Errors of reading a JSON file that is missing or damaged."""
DRAWN_BY = "infer.py"
"""Mark in a drawing, which may be drawn again."""
FAR = (np.inf, np.inf)
"""Difference of two objects of unlike classes."""


class UserError(Exception):
    """Something that the user can fix; the message is one line."""


class Detections(NamedTuple):
    """Objects of one image, best first."""

    boxes: np.ndarray
    """K x 4: x1, y1, x2, y2 in pixels of the image."""
    scores: np.ndarray
    """K, in 0..1."""
    classes: np.ndarray
    """K, lines of labels.txt, counted from 0."""


class Detector:
    """The model of a folder with preprocess.json and labels.txt.

    Args:
        folder: the folder.
        model: its model file, in place of the one that preprocess.json names.
    """

    def __init__(self, folder: str | Path = HERE, model: str | None = None) -> None:
        folder = Path(folder)
        try:
            self.config = json.loads((folder / "preprocess.json").read_text(encoding="utf-8"))
            self.labels = (folder / "labels.txt").read_text(encoding="utf-8").splitlines()
            classes = max(self.config["suppression"]["class_of"]) + 1
        except DAMAGED as error:
            raise UserError(
                f"{folder}: no readable preprocess.json and labels.txt ({error!r}); export it again"
            ) from error
        if len(self.labels) != classes:
            raise UserError(f"{folder / 'labels.txt'}: {len(self.labels)} names, but the model has {classes} classes")
        file = folder / (model or self.config["model"])
        if not file.is_file():
            raise UserError(f"{file}: no such file; name a model file of this folder")
        try:
            self.run = RUNTIMES[self.config["format"]](file, self.config)
        except ImportError as error:
            raise UserError(f"{error}; run: pip install {self.config['runtime']}") from error
        except Exception as error:  # runtimes raise many kinds for damaged files
            raise UserError(f"{file}: cannot be loaded ({error}); export it again") from error

    def __call__(self, image: Image.Image, score: float = 0.3) -> Detections:
        """Detect the objects of an image with at least this score."""
        image = to_rgb(image)
        pixels, size = preprocess(image, self.config)
        found = finish(self.run(pixels), size, self.config["suppression"])
        boxes = found.boxes / np.tile(np.divide(size, image.size), 2)
        return keep(Detections(boxes, *found[1:]), found.scores >= score)


# From an image to the input of the network


def to_rgb(image: Image.Image) -> Image.Image:
    """Turn an image as its EXIF data say, and convert it to RGB; of 16-bit gray the upper 8 bits in use are kept."""
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        gray = np.asarray(image)
        if image.mode == "F" or gray.min(initial=0) < 0 or gray.max(initial=0) >= 2**16:
            raise UserError("pixels of more than 16 bits; save the image with 8 or 16 bits")
        bits = next((bits for bits in (8, 12) if gray.max(initial=0) < 2**bits), 16)
        image = Image.fromarray((gray >> (bits - 8)).astype(np.uint8))
    return image.convert("RGB")


def preprocess(image: Image.Image, config: dict[str, Any]) -> tuple[np.ndarray, tuple[int, int]]:
    """Return the input, 1 x 3 x S x S, and the width and height that the image, top left, has in it."""
    rule = config["preprocess"]
    side, longer = rule["size"], max(image.size)
    width, height = (max(1, round(length * side / longer)) for length in image.size)
    frame = Image.new("RGB", (side, side), tuple(rule["padding"]))
    # antialiased when it shrinks; rows first, as in training: Pillow alone begins with the columns of a tall image
    narrow = image.resize((width, image.height), Image.Resampling.BILINEAR)
    frame.paste(narrow.resize((width, height), Image.Resampling.BILINEAR))
    pixels = (np.asarray(frame, np.float32) / np.float32(255) - np.float32(rule["mean"])) / np.float32(rule["std"])
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)[None]), (width, height)


# From the output of the network to detections


def finish(outputs: list[np.ndarray], size: tuple[int, int], rule: dict[str, Any]) -> Detections:
    """Turn the outputs for one image of a width and height in the input into detections."""
    if rule["inside"]:
        boxes, scores, classes = (output[0] for output in outputs)
        found = Detections(clip(boxes, size), scores, classes)
    else:
        boxes, scores = (output[0] for output in outputs)
        found = suppress(clip(boxes, size), scores, rule)
    return keep(found, (found.classes >= 0) & (found.boxes[:, 2:] > found.boxes[:, :2]).all(axis=1))


def suppress(boxes: np.ndarray, scores: np.ndarray, rule: dict[str, Any]) -> Detections:
    """Select the candidates among all boxes, and suppress those that overlap a better one of their class.

    Args:
        boxes: A x 4.
        scores: A x C, a column for each class of the network.
        rule: "suppression" of preprocess.json.
    """
    row, column = np.nonzero(candidates(scores, rule) & (scores > rule["above"]))
    values = scores[row, column]
    order, kept = np.argsort(-values, kind="stable"), list[int]()
    while len(order) and len(kept) < rule["per_image"]:
        best, order = order[0], order[1:]
        kept.append(best)
        if rule["iou"] is not None:
            same = column[order] == column[best]
            order = order[~(same & (overlaps(boxes[row[best]], boxes[row[order]]) > rule["iou"]))]
    return Detections(boxes[row[kept]], values[kept], np.array(rule["class_of"])[column[kept]])


def candidates(scores: np.ndarray, rule: dict[str, Any]) -> np.ndarray:
    """Mark the best scores of each group of boxes, or of each class in it."""
    marks, start = np.zeros(scores.shape, bool), 0
    for count in rule["groups"]:
        part, some = scores[start : start + count], marks[start : start + count]
        if rule["by_class"]:
            best = np.argsort(-part, axis=0, kind="stable")[: rule["candidates"]]
            np.put_along_axis(some, best, True, axis=0)
        else:
            some.flat[np.argsort(-part, axis=None, kind="stable")[: rule["candidates"]]] = True
        start += count
    return marks


def overlaps(box: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return the IoU of a box with others."""
    low, high = np.maximum(box[:2], others[:, :2]), np.minimum(box[2:], others[:, 2:])
    common = (high - low).clip(0).prod(axis=1)
    union = (box[2:] - box[:2]).prod() + (others[:, 2:] - others[:, :2]).prod(axis=1) - common
    iou: np.ndarray = common / union.clip(1e-9)
    return iou


def clip(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Clip boxes to a width and height."""
    clipped: np.ndarray = boxes.clip(0, np.tile(np.array(size, np.float32), 2))
    return clipped


def keep(found: Detections, which: np.ndarray) -> Detections:
    """Keep a part of the detections."""
    return Detections(*(values[which] for values in found))


# The runtimes: each loads a file, and returns a function from the input to the outputs in the order of preprocess.json

Run = Callable[[np.ndarray], list[np.ndarray]]


def load_onnx(file: Path, config: dict[str, Any]) -> Run:
    """Load a file into ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    return lambda images: session.run(config["outputs"], {next(iter(config["input"])): images})


def load_openvino(file: Path, _config: dict[str, Any]) -> Run:
    """Load a file into OpenVINO; float32 is not its default on every CPU."""
    import openvino

    model = openvino.compile_model(file, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return lambda images: list(model(images).values())


def load_ncnn(file: Path, config: dict[str, Any]) -> Run:
    """Load a file into ncnn; float32 is not its default on ARM."""
    import ncnn

    net = ncnn.Net()
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = net.opt.use_bf16_storage = False
    if net.load_param(str(file)) or net.load_model(str(file.with_suffix(".bin"))):
        raise ValueError("ncnn says no more")

    def run(images: np.ndarray) -> list[np.ndarray]:
        extractor = net.create_extractor()
        extractor.input(next(iter(config["input"])), ncnn.Mat(images[0]))
        return [np.array(extractor.extract(name)[1])[None] for name in config["outputs"]]

    return run


def load_litert(file: Path, config: dict[str, Any]) -> Run:
    """Load a file into LiteRT."""
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(str(file)).get_signature_runner()

    def run(images: np.ndarray) -> list[np.ndarray]:
        found = runner(**{next(iter(config["input"])): images})
        return [found[name] for name in config["outputs"]]

    return run


RUNTIMES = {"onnx": load_onnx, "openvino": load_openvino, "ncnn": load_ncnn, "litert": load_litert}


# The command


def main() -> int:
    """Run the command; return its exit status: 1 if the check fails, 2 after bad input."""
    parser = argparse.ArgumentParser(description="Detect objects with the model in this folder.")
    parser.add_argument("images", nargs="*", type=Path, help="image files, or folders of them")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="write the images there, with boxes drawn")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the boxes there, in pixels of each image")
    parser.add_argument("--score", type=float, default=0.3, help="lowest score of an object to report (default: 0.3)")
    parser.add_argument("--model", metavar="FILE", help="another model file of this folder, such as an int8 one")
    parser.add_argument("--check", action="store_true", help="compare the boxes of the test image with expected.json")
    options = parser.parse_args()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for labels that a console's encoding lacks
    try:
        if options.check and (options.images or options.out or options.json):
            raise UserError("--check takes no images, --out or --json: it runs on the test image of this folder")
        if not options.check and not options.images:
            raise UserError("name images, or folders of them; --help lists the options")
        if not 0 <= options.score <= 1:
            raise UserError(f"--score: expected a number from 0 to 1, got {options.score:g}")
        files = list({file.resolve(): file for file in find_images(options.images)}.values())
        detector = Detector(model=options.model)
        return check(detector, HERE) if options.check else detect(detector, files, options)
    except (OSError, UserError) as error:
        print(f"infer.py: error: {error}", file=sys.stderr)
        return 2


def find_images(paths: list[Path]) -> Iterator[Path]:
    """List files, and the images in folders."""
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: no such file or folder")
        files = [path] if path.is_file() else sorted(file for file in path.iterdir() if is_image(file.name))
        if not files:
            raise UserError(f"{path}: no image in this folder; they end in {', '.join(SUFFIXES)}")
        yield from files


def is_image(name: str) -> bool:
    """Return whether a file in a folder is an image; hidden files, such as macOS's ``._a.jpg``, are not."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def open_image(file: Path) -> Image.Image:
    """Decode an image file to RGB."""
    try:
        with Image.open(file) as image:
            return to_rgb(image)
    except Exception as error:  # decoders of broken files raise any kind of exception
        raise UserError(f"{file}: cannot be decoded as an image ({error})") from error


def refuse_clashes(files: list[Path], out: Path) -> None:
    """Refuse to draw two images into one file, over an input, or over a file that this script has not drawn."""
    taken = {file.resolve(): file for file in files}
    for file in files:
        drawn = out / f"{file.stem}.png"
        other = taken.setdefault(drawn.resolve(), file)
        if other.resolve() == drawn.resolve():
            raise UserError(f"--out: {file} would be drawn over {other}; name another folder")
        if other is not file:
            raise UserError(f"--out: {other} and {file} would both be drawn to {drawn}; rename one")
        if drawn.exists() and not is_drawing(drawn):
            raise UserError(f"--out: {drawn} exists, and infer.py has not drawn it; name another folder")


def is_drawing(file: Path) -> bool:
    """Return whether this script has drawn a file."""
    try:
        with Image.open(file) as image:
            return bool(image.info.get("Software") == DRAWN_BY)
    except Exception:  # as in open_image
        return False


def is_result(file: Path) -> bool:
    """Return whether this script has written a JSON file, or was about to; a pipe holds nothing to lose."""
    if file.is_fifo() or file.is_char_device():
        return True  # to read it would wait for ever
    try:
        content = json.loads(file.read_text(encoding="utf-8") or "[]")
        return isinstance(content, list) and all(one.keys() == {"image", "objects"} for one in content)
    except (*DAMAGED, AttributeError, RecursionError):
        return False


def detect(detector: Detector, files: list[Path], options: argparse.Namespace) -> int:
    """Print the objects of image files, draw them and write them as JSON."""
    if options.out:
        refuse_clashes(files, options.out)
        options.out.mkdir(parents=True, exist_ok=True)
    if options.json:
        if options.json.exists() and not is_result(options.json):
            raise UserError(f"--json: {options.json} exists, and infer.py has not written it; name another file")
        options.json.open("a").close()  # before the work that would be lost
    written, seconds, status = [], [], 0
    for file in files:
        try:
            image = open_image(file)
        except UserError as error:
            print(f"infer.py: error: {error}", file=sys.stderr)
            status = 2
            continue
        start = time.perf_counter()
        found = detector(image, options.score)
        seconds.append(time.perf_counter() - start)
        objects = describe(found, detector.labels)
        print(f"{file}: {len(objects)} object{'' if len(objects) == 1 else 's'}")
        print(*(f"  {line(one)}\n" for one in objects), sep="", end="")
        if options.out:
            mark = PngInfo()
            mark.add_text("Software", DRAWN_BY)
            draw(image, objects).save(options.out / f"{file.stem}.png", pnginfo=mark)
        written.append({"image": str(file), "objects": objects})
    if seconds:
        print(f"{1000 * sorted(seconds)[len(seconds) // 2]:.1f} ms for an image (median), from its pixels to its boxes")
    if options.json:
        options.json.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    return status


def describe(found: Detections, labels: list[str]) -> list[dict[str, Any]]:
    """Return detections as JSON types."""
    return [
        {"label": labels[index], "class": index, "score": round(score, 4), "box": [round(value, 2) for value in box]}
        for box, score, index in zip(*(values.tolist() for values in found), strict=True)
    ]


def line(one: dict[str, Any]) -> str:
    """Return an object as a line of text."""
    return f"{one['score']:.3f}  {one['label']:<16}" + "".join(f"{value:9.1f}" for value in one["box"])


def draw(image: Image.Image, objects: list[dict[str, Any]]) -> Image.Image:
    """Draw objects into a copy of an RGB image, with a color for each class."""
    image = image.copy()
    pen, unit = ImageDraw.Draw(image), max(1, round(max(image.size) / 400))
    font = ImageFont.load_default(11 * unit)
    for one in reversed(objects):  # the best on top
        hue = one["class"] * 0.618034 % 1  # the golden ratio keeps colors apart
        color = tuple(round(255 * value) for value in colorsys.hls_to_rgb(hue, 0.4, 0.9))
        left, top, right, bottom = one["box"]
        pen.rectangle((left, top, right, bottom), outline=color, width=unit + 1)
        text = f"{one['label']} {one['score']:.2f}"
        place = (left + 2 * unit, max(0, top - 14 * unit))
        x1, y1, x2, y2 = pen.textbbox(place, text, font=font)
        pen.rectangle((x1 - 2 * unit, y1 - unit, x2 + 2 * unit, y2 + unit), fill=color)
        pen.text(place, text, fill="white", font=font)
    return image


def check(detector: Detector, folder: Path) -> int:
    """Compare the objects in the test image with expected.json; return 0 if they agree, otherwise 1."""
    try:
        expected = json.loads((folder / "expected.json").read_text(encoding="utf-8"))
        image, *_ = (expected[key] for key in ("image", "score", "tolerance", "objects"))
    except DAMAGED as error:
        raise UserError(f"{folder}: no readable expected.json ({error!r}); export it again") from error
    found = describe(detector(open_image(folder / image), 0.0), detector.labels)
    missing, new, gaps = compare(expected, found)
    for what, objects in (("expected", missing), ("not expected", new)):
        for one in objects:
            print(f"{what}: {line(one)}")
    pixels, score = np.max(gaps, axis=0, initial=0.0)
    print(f"{len(gaps)} agree; largest differences {pixels:.3f} pixels and {score:.4f} in scores")
    return 1 if missing or new else 0


class Comparison(NamedTuple):
    """Objects found in an image, compared with expected ones."""

    missing: list[dict[str, Any]]
    new: list[dict[str, Any]]
    gaps: list[tuple[float, float]]
    """Differences of the others in pixels and in scores."""


def compare(expected: dict[str, Any], found: list[dict[str, Any]]) -> Comparison:
    """Compare objects of any score with those of an expected.json."""
    lowest, limit = expected["score"], expected["tolerance"]
    left = [one for one in found if one["score"] >= lowest - limit["score"]]
    missing, gaps = [], []
    for one in expected["objects"]:
        gap, nearest = min(((difference(one, other), place) for place, other in enumerate(left)), default=(FAR, 0))
        if gap[0] <= limit["pixels"] and gap[1] <= limit["score"]:
            gaps.append(gap)
            del left[nearest]
        else:
            missing.append(one)
    new = [one for one in left if one["score"] > lowest + limit["score"]]
    return Comparison(missing, new, gaps)


def difference(one: dict[str, Any], other: dict[str, Any]) -> tuple[float, float]:
    """Return the largest distance between the sides of two objects, in pixels, and the difference of their scores."""
    if one["class"] != other["class"]:
        return FAR
    return float(np.abs(np.subtract(one["box"], other["box"])).max()), abs(one["score"] - other["score"])


if __name__ == "__main__":
    sys.exit(main())
