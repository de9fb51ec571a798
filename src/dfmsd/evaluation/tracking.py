"""Objects followed from frame to frame of a video, by ByteTrack from the package trackers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import torch

from dfmsd.detectors.prediction import NO_TRACK, Prediction
from dfmsd.errors import DfmsdError
from dfmsd.utils.console import quiet
from dfmsd.utils.extras import import_extra

SETTING = "`track`"


class Tracker:
    """Give the detections in the frames of one video ids.

    Every detection may start a track, which has an id from its second frame on. Classes are not compared, so an object
    keeps its id where its class wavers.

    Args:
        score: lowest score of the detections, 0..1.
        frame_rate: frames per second; a track that is lost for a second ends.

    Raises:
        DfmsdError: trackers is not installed.
    """

    def __init__(self, score: float, frame_rate: float) -> None:
        self._tracker = _import_trackers().ByteTrackTracker(
            frame_rate=frame_rate, track_activation_threshold=score, high_conf_det_threshold=score
        )

    def update(self, prediction: Prediction) -> Prediction:
        """Return the detections of the next frame with their ids; their order stays."""
        detections = prediction.to_supervision()
        detections.data["position"] = np.arange(len(prediction))
        tracked = self._tracker.update(detections)
        ids = torch.full((len(prediction),), NO_TRACK)
        if len(tracked):
            ids[tracked.data["position"]] = torch.from_numpy(tracked.tracker_id)
        return replace(prediction, track_ids=ids)


def check_tracking(images: Sequence[Path]) -> None:
    """Check that tracking is possible.

    Args:
        images: the inputs that are no videos.

    Raises:
        DfmsdError: There are such inputs, or trackers is not installed.
    """
    if images:
        raise DfmsdError(
            f"{SETTING} follows objects through a video, but {images[0]} is an image; give videos only, or leave it out"
        )
    _import_trackers()


def _import_trackers() -> ModuleType:
    with quiet():  # as supervision's, see `import_supervision`
        module: ModuleType = import_extra(SETTING, "trackers", "track")
    return module
