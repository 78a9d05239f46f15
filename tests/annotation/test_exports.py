"""What Label Studio's own library reads is the mask that was exported, pixel by pixel."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.typing import NDArray

from alges_fast.annotation.exports import AnnotatedFrame, label_studio_config, label_studio_tasks

CLASSES = ("background", "liver", "grasper & co")
PALETTE = ((127, 127, 127), (255, 114, 114), (170, 255, 0))


def masks() -> list[NDArray[np.uint8]]:
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 3, (37, 53)).astype(np.uint8)
    smooth = np.zeros((300, 301), np.uint8)  # runs longer than 2^16 bytes
    smooth[280:290, 5:9] = 2
    unlabelled = np.full((5, 7), 255, np.uint8)
    unlabelled[0, 0] = unlabelled[4, 6] = 1
    return [noise, smooth, np.full((4, 4), 1, np.uint8), unlabelled]


def frames() -> list[AnnotatedFrame]:
    return [AnnotatedFrame(f"video1/frame_{i}.png", mask, score=i / 4) for i, mask in enumerate(masks())]


def test_label_studio_import_holds_the_masks() -> None:
    brush = pytest.importorskip("label_studio_sdk.converter.brush", reason="label-studio-sdk is not installed")
    from label_studio_sdk._extensions.label_studio_tools.core.label_config import parse_config

    interface = parse_config(label_studio_config(CLASSES, PALETTE))
    assert interface["classes"]["labels"] == list(CLASSES)
    assert interface["classes"]["to_name"] == ["image"]
    tasks = json.loads(label_studio_tasks(frames(), CLASSES, image_prefix="/data/", model_version="test"))
    for frame, task in zip(frames(), tasks, strict=True):
        assert task["data"]["image"] == "/data/" + frame.name
        (prediction,) = task["predictions"]
        found = np.full_like(frame.mask, 255)
        for result in prediction["result"]:
            assert result["from_name"] in interface
            assert (result["original_height"], result["original_width"]) == frame.mask.shape
            alpha = brush.decode_rle(result["value"]["rle"]).reshape(*frame.mask.shape, 4)[:, :, 3]
            (name,) = result["value"]["brushlabels"]
            found[alpha > 0] = CLASSES.index(name)
        np.testing.assert_array_equal(found, frame.mask)
