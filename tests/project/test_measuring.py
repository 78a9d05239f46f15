"""What is held out, and what can be said from it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from alges_fast.project.status import another_round
from alges_fast.project.training import dice_with_intervals, gain_with_interval, hold_out


def videos(*sizes: int) -> dict[str, str]:
    return {f"{video}/{frame}": str(video) for video, size in enumerate(sizes) for frame in range(size)}


def test_a_fifth_by_video_and_what_was_held_out_stays() -> None:
    assert hold_out(videos(3, 3, 3), ()) is None  # fewer than ten frames
    frames = videos(*[4] * 10)
    held = hold_out(frames, ())
    assert held is not None
    assert held.whole_videos
    assert 8 <= len(held.ids) <= 13
    held_videos = {frames[id] for id in held.ids}
    assert {id for id in frames if frames[id] in held_videos} == set(held.ids)
    more = {**frames, **{f"new{video}/{frame}": f"new{video}" for video in range(5) for frame in range(4)}}
    later = hold_out(more, held.ids)
    assert later is not None
    assert set(held.ids) < set(later.ids)
    one = hold_out(videos(20), ())
    assert one is not None
    assert (len(one.ids), one.whole_videos) == (4, False)


def counts(right: Any, n: int = 8) -> Any:
    """n frames of 100 pixels of each of two classes, so many of them right; the rest is taken for the other class."""
    right = np.broadcast_to(right, (n, 2))
    found = np.stack([right, np.full((n, 2), 100), right + (100 - right)[:, ::-1]], 1)
    return found.astype(np.int64)


def test_dice_and_its_interval() -> None:
    generator = np.random.default_rng(0)
    found = dice_with_intervals(counts(generator.integers(50, 100, (8, 2))))
    value, low, high = found["mean"]
    assert low < value < high
    assert dice_with_intervals(counts(100, 8))["classes"] == [[1.0, 1.0, 1.0]] * 2
    assert dice_with_intervals(counts(100, 3))["mean"] == [1.0, None, None]  # too few frames for an interval
    absent = counts(100, 6)
    absent[:, 1:, 1] = absent[:, 0, 1:] = 0
    assert dice_with_intervals(absent)["classes"][1] == [None, None, None]
    gain = gain_with_interval(counts(90), counts(80))
    assert gain == pytest.approx([0.1, 0.1, 0.1])


@pytest.mark.parametrize(
    ("gain", "frames", "held_out", "says"),
    [
        (None, 6, 0, "cannot be told yet: from 10 annotated frames on"),
        ([0.1, None, None], 12, 2, "2 held-out frames are too few"),
        ([0.02, -0.01, 0.05], 40, 8, "may be chance"),
        ([0.08, 0.04, 0.12], 50, 10, "Another round of 40 frames would bring about +0.080 Dice (+0.040 to +0.120)"),
    ],
)
def test_another_round(gain: Any, frames: int, held_out: int, says: str) -> None:
    facts = {"gain": gain, "frames": frames, "held_out": ["x"] * held_out, "round": 1}
    imports = [SimpleNamespace(round=number, frames=dict.fromkeys(range(20))) for number in (0, 1, 1)]
    project: Any = SimpleNamespace(models=[SimpleNamespace(facts=facts)], imports=imports, root=Path("p"))
    assert says in another_round(project)
