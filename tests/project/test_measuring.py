"""What is held out, and what can be said from it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from alges_fast.project.measuring import comparison, dice_with_intervals, frames_for, gain_with_interval, hold_out
from alges_fast.project.status import another_round, label_saving
from alges_fast.project.training import _scaled
from alges_fast.windows import Window


def videos(*sizes: int) -> dict[str, str]:
    return {f"{video}/{frame}": str(video) for video, size in enumerate(sizes) for frame in range(size)}


def test_a_fifth_by_video_and_what_was_held_out_stays() -> None:
    assert hold_out(videos(3, 3, 3), ()) is None  # fewer than ten frames
    frames = videos(*[4] * 10)
    held = hold_out(frames, ())
    assert held.whole_videos
    assert 8 <= len(held.ids) <= 13
    held_videos = {frames[id] for id in held.ids}
    assert {id for id in frames if frames[id] in held_videos} == set(held.ids)
    more = {**frames, **{f"new{video}/{frame}": f"new{video}" for video in range(5) for frame in range(4)}}
    later = hold_out(more, held.ids)
    assert set(held.ids) < set(later.ids)
    one = hold_out(videos(20), ())
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


def test_what_is_compared_with_random_frames() -> None:
    """Whole frames alone, none of which is held out; measured on held-out frames that were drawn at random."""
    asked = {"strategy": None, "model": None, "regions": None}
    rounds = [
        SimpleNamespace(asked=asked, model=None, picks=[f"typical{i}" for i in range(7)]),
        SimpleNamespace(asked={**asked, "strategy": "random"}, model=0, picks=[f"random{i}" for i in range(20)]),
        SimpleNamespace(asked={**asked, "regions": "2x2"}, model=0, picks=[Window("typical0", 0, 0, 2, 2)]),
        SimpleNamespace(asked=asked, model=1, picks=[f"alges{i}" for i in range(3)]),
    ]
    labelled: Any = {id: None for round in rounds for id in round.picks if isinstance(id, str)}
    labelled["typical0"] = (Window("typical0", 0, 0, 2, 2),)
    project: Any = SimpleNamespace(rounds=rounds, labelled=labelled)
    held = {f"random{i}" for i in range(6)} | {"typical1"}
    found = comparison(project, [id for id in labelled if id not in held], held)
    assert found.chosen == [*(f"typical{i}" for i in range(2, 7)), *(f"alges{i}" for i in range(3))]
    assert found.random == [f"random{i}" for i in range(6, 20)]
    assert found.held_out == [f"random{i}" for i in range(6)]
    assert found.strategies == ["typical", "alges-img"]
    assert found.sizes == [4, 8, 14]
    assert comparison(project, list(labelled), held - {"random0", "random1"}) is None  # too few drawn at random


def test_how_many_random_frames_reach_a_dice() -> None:
    assert frames_for(0.5, [4, 8, 14], [0.4, 0.45, 0.55]) == pytest.approx(11)
    assert frames_for(0.6, [4, 8, 14], [0.4, 0.45, 0.55]) is None
    assert frames_for(0.45, [4, 8], [0.5, 0.4]) == 4


@pytest.mark.parametrize(
    ("difference", "random_frames", "says"),
    [
        ([0.05, 0.01, 0.09], 15.0, "About 15 random ones reach it, 1.5 times as many."),
        ([0.05, 0.01, 0.09], None, "and 20 random ones do not reach it"),
        ([0.05, -0.01, 0.09], 15.0, "cannot be told yet"),
        ([-0.05, -0.09, -0.01], 6.0, "Choosing cost labels"),
    ],
)
def test_label_saving(difference: Any, random_frames: Any, says: str) -> None:
    saving = {"frames": 10, "held_out": 6, "strategies": ["typical"], "dice": 0.55, "random_dice": 0.5, "most": 20}
    saving |= {"difference": difference, "random_frames": random_frames}
    project: Any = SimpleNamespace(models=[SimpleNamespace(facts={"saving": saving})])
    assert says in label_saving(project)
    project.models[0].facts["saving"] = None
    assert "cannot be known from this project" in label_saving(project)


def test_a_window_in_stretched_frames_is_rounded_outwards() -> None:
    assert _scaled(Window("a", 0, 0, 20, 24), (48, 60), 64) == Window("a", 0, 0, 22, 32)
    assert _scaled(Window("a", 40, 24, 20, 24), (48, 60), 64) == Window("a", 42, 32, 22, 32)
