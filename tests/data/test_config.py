from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dfmsd.data import DataConfig
from dfmsd.data.pseudo import PseudoConfig
from dfmsd.errors import DfmsdError

SIZE = "data.image_size must be a multiple of 32, at least 32 and at most 16384, got "
BAD_VALUES: list[tuple[str, Any, str]] = [
    ("root", 7, "data.root must be a string, got 7"),
    ("root", "", "data.root: ''"),
    ("root", "a\0b", "data.root: 'a\\x00b'"),
    ("image_size", -3, SIZE + "-3"),
    ("image_size", 0, SIZE + "0"),
    ("image_size", 100, SIZE + "100"),
    ("image_size", 2**15, SIZE + "32768"),
    ("image_size", 64.0, "data.image_size must be an integer, got 64.0"),
    ("image_size", "64", "data.image_size must be an integer, got '64'"),
    ("batch_size", 0, "data.batch_size must be at least 1, got 0"),
    ("batch_size", 2.5, "data.batch_size must be an integer, got 2.5"),
    ("batch_size", True, "data.batch_size must be an integer, got True"),
    ("pad", "mirror", "data.pad must be one of square, batch, got 'mirror'"),
    ("flip", 1.5, "data.flip must be a probability, 0 to 1, got 1.5"),
    ("flip", -0.1, "data.flip must be a probability"),
    ("flip", float("nan"), "data.flip must be a probability, 0 to 1, got nan"),
    ("flip", "often", "data.flip must be a number or null, got 'often'"),
    ("augment", "heavy", "data.augment must be one of none, light, strong, got 'heavy'"),
    ("mosaic", 2.0, "data.mosaic must be a probability, 0 to 1, got 2.0"),
    ("mosaic_off", -1, "data.mosaic_off must be at least 0, got -1"),
    ("augment_pool", 0, "data.augment_pool must be at least 1, got 0"),
    ("multi_scale", (1.5, 0.5), "data.multi_scale must be [low, high] with 0 < low <= high, or null, got (1.5, 0.5)"),
    ("multi_scale", (0.0, 1.5), "data.multi_scale must be [low, high]"),
    ("multi_scale", (0.95, 1.05), "data.multi_scale: 243.2 to 268.8 pixels hold 1 multiple of 32, so there is nothing"),
    ("multi_scale", (1.01, 1.1), "data.multi_scale: 258.56 to 281.6 pixels hold no multiple of 32"),
    ("multi_scale", (1.0, 99.0), "data.multi_scale: 99 x image_size 256 is more than 16384 pixels"),
    ("scale_jitter", (2.0, 0.5), "data.scale_jitter must be [low, high] with 0 < low <= high, or null, got (2.0, 0.5)"),
    ("scale_jitter", (0.0, 0.5), "data.scale_jitter"),
    ("scale_jitter", (0.5, float("inf")), "data.scale_jitter"),
    ("scale_jitter", (0.5, 1.0, 2.0), "data.scale_jitter must be a list of 2 values or null, got (0.5, 1.0, 2.0)"),
    ("scale_jitter", 0.5, "data.scale_jitter"),
    ("scale_jitter", ("0.5", "2"), "data.scale_jitter must be a number, got '0.5'"),
    ("holdout", 0.6, "data.holdout must be a share of the training images, 0 to 0.5, got 0.6"),
    ("unlabeled", "", "data.unlabeled: ''"),
    ("unlabeled", 7, "data.unlabeled must be a string or null, got 7"),
    ("unlabeled_ratio", 0.01, "data.unlabeled_ratio must be large enough for one unlabeled image per batch, got 0.01"),
    ("unlabeled_ratio", -1.0, "data.unlabeled_ratio"),
    ("unlabeled_ratio", float("inf"), "data.unlabeled_ratio"),
    (
        "pseudo",
        {"score": "auto"},
        "data.pseudo: there are no images to label; name a folder of them with data.unlabeled",
    ),
    ("pseudo", {"score": 0}, "data.pseudo.score must be auto, or above 0 and below 1, got 0"),
    ("pseudo", {"score": 1.5}, "data.pseudo.score must be auto, or above 0 and below 1, got 1.5"),
    ("pseudo", {"score": float("nan")}, "data.pseudo.score must be auto, or above 0 and below 1, got nan"),
    ("pseudo", {"score": "best"}, "data.pseudo.score must be a number or one of auto or null, got 'best'"),
    ("pseudo", {"scores": 0.5}, "data.pseudo.scores is not known; did you mean score?"),
    ("pseudo", {"teacher": ""}, "data.pseudo.teacher: ''"),
    ("pseudo", {"flip": "yes"}, "data.pseudo.flip must be true or false, got 'yes'"),
    ("pseudo", 7, "data.pseudo must be a PseudoConfig, got 7"),
    ("pseudo", {"flip": True}, "data.pseudo.flip: no image is labeled without data.pseudo.score; set that to auto"),
    ("workers", -1, "data.workers must be at least 0, got -1"),
    ("workers", 0.5, "data.workers must be an integer or null, got 0.5"),
    ("cache", "tape", "data.cache must be true or false or one of ram, disk, off, got 'tape'"),
    ("cache", None, "data.cache"),
    ("cache_gib", 0.0, "data.cache_gib must be above 0, got 0.0"),
    ("cache_gib", "4", "data.cache_gib must be a number, got '4'"),
]


@pytest.mark.parametrize(("key", "value", "message"), BAD_VALUES, ids=[f"{key}={v!r}" for key, v, _ in BAD_VALUES])
def test_a_bad_value_is_refused_at_construction(key: str, value: Any, message: str) -> None:
    for build in (lambda: DataConfig(**{key: value}), lambda: replace(DataConfig(), **{key: value})):
        with pytest.raises(DfmsdError) as caught:
            build()
        assert str(caught.value).startswith(message)
        assert "\n" not in str(caught.value)


def test_paths_and_numpy_scalars_become_builtin_types() -> None:
    config = DataConfig(
        root=Path("somewhere"),  # type: ignore[arg-type]
        unlabeled=Path("more"),  # type: ignore[arg-type]
        image_size=np.int64(64),  # type: ignore[arg-type]
        batch_size=np.uint8(4),  # type: ignore[arg-type]
        workers=np.int32(2),  # type: ignore[arg-type]
        flip=np.float32(0.5),  # type: ignore[arg-type]
        scale_jitter=[np.float64(0.5), 2],  # type: ignore[arg-type]
    )
    expected = DataConfig(
        root="somewhere", unlabeled="more", image_size=64, batch_size=4, workers=2, flip=0.5, scale_jitter=(0.5, 2.0)
    )
    assert config == expected
    for field in fields(config):
        assert type(getattr(config, field.name)) is type(getattr(expected, field.name))
    assert all(type(factor) is float for factor in config.scale_jitter or ())


def test_pseudo_labels_are_off_without_a_score() -> None:
    assert not DataConfig().labels_images
    config = DataConfig(unlabeled="more", pseudo={"score": 0.5, "flip": True})  # type: ignore[arg-type]
    assert config.labels_images
    assert config.pseudo == PseudoConfig(score=0.5, flip=True)
    assert config.labeled_only() == DataConfig()
    with pytest.raises(DfmsdError, match=r"^data.pseudo.image_size must be a multiple of 32"):
        DataConfig(unlabeled="more", pseudo=PseudoConfig("auto", image_size=65))


@pytest.mark.parametrize(("value", "name"), [(True, "ram"), (False, "off"), ("disk", "disk")])
def test_booleans_select_a_cache(value: Any, name: str) -> None:
    assert DataConfig(cache=value).cache == name


def test_a_preset_sets_the_augmentations_and_keys_override_it() -> None:
    assert DataConfig().augmentation == {"flip": 0.5}
    assert DataConfig(augment="none").augmentation == {"flip": 0.0}
    strong = DataConfig(augment="strong", flip=0, mosaic=0.25).augmentation
    assert (strong["flip"], strong["mosaic"]) == (0, 0.25)
    assert strong["scale_jitter"] == DataConfig(augment="strong").augmentation["scale_jitter"]


def test_images_come_back_in_few_versions_or_in_none() -> None:
    assert DataConfig(flip=0).versions(42) == 1
    assert DataConfig().versions(42) == 2
    assert DataConfig(scale_jitter=(1, 1), mosaic=0).versions(42) == 2
    assert DataConfig(augment="strong").versions(42) is None
    assert DataConfig(augment="strong").unrepeated == ["scale_jitter", "photometric", "mosaic"]


@pytest.mark.parametrize(("pool", "versions"), [(1, 1), (2, 2), (8, 2)])
def test_flips_alone_make_two_versions_of_a_larger_pool(pool: int, versions: int) -> None:
    assert DataConfig(augment_pool=pool).versions(42) == versions


@pytest.mark.parametrize(("epochs", "versions"), [(9, 8 + 1), (42, 8 + 5), (200, 8 + 8), (5, 4 + 1)])
def test_a_pool_has_other_versions_once_nothing_is_mixed(epochs: int, versions: int) -> None:
    assert DataConfig(augment="strong", augment_pool=8).versions(epochs) == versions
    assert DataConfig(augment="strong", augment_pool=8, mosaic=0).versions(epochs) == min(8, epochs)


def test_the_last_epochs_are_unmixed() -> None:
    assert [DataConfig().unmixed_epochs(epochs) for epochs in (1, 9, 10, 42)] == [1, 1, 1, 5]
    assert DataConfig(mosaic_off=3).unmixed_epochs(2) == 2
    assert DataConfig(mosaic_off=0).unmixed_epochs(2) == 0


def test_batches_have_sizes_in_steps_of_32() -> None:
    assert DataConfig().batch_sizes == (256,)
    config = DataConfig(image_size=256, multi_scale=(0.75, 1.25))
    assert config.batch_sizes == (192, 224, 256, 288, 320)
    assert config.mean_area == pytest.approx((192**2 + 224**2 + 256**2 + 288**2 + 320**2) / 5 / 256**2)
    assert DataConfig(image_size=320, multi_scale=(1.1, 1.3)).batch_sizes == (352, 384, 416)
    assert DataConfig(image_size=32, multi_scale=(0.1, 2.0)).batch_sizes == (32, 64)
