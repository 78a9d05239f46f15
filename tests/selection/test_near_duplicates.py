"""How alike the frames of videos are, and which of them stand for all."""

from __future__ import annotations

import numpy as np
import pytest

from alges_fast.selection.near_duplicates import nearest_in_video, representatives, typical_distance

GENERATOR = np.random.default_rng(0)
PATHS = GENERATOR.normal(0, 0.05, (3, 60, 5)).cumsum(1) + GENERATOR.normal(0, 3, (3, 1, 5))
POINTS = PATHS.reshape(-1, 5).astype(np.float32)
VIDEOS = [f"video{number // 60}" for number in range(180)]


def distances() -> np.ndarray:
    found = np.linalg.norm(POINTS[:, None].astype(float) - POINTS[None], axis=2)
    found[np.not_equal.outer(VIDEOS, VIDEOS)] = np.inf
    return found


@pytest.mark.parametrize("radius", [0.05, 0.2, 1.0, 50.0])
@pytest.mark.parametrize("first", [(), (17, 18, 130)])
def test_all_frames_are_near_one_that_stands_for_them(radius: float, first: tuple[int, ...]) -> None:
    stay = representatives(POINTS, VIDEOS, radius, first)
    between = distances()
    assert set(first) <= set(stay)
    assert between[:, stay].min(1).max() <= radius
    others = [at for at in stay if at not in first]
    assert all(between[at, [other for other in stay if other != at]].min(initial=np.inf) > radius for at in others)
    assert stay == sorted(stay)


def test_of_an_order_that_mixes_videos_the_same_stand() -> None:
    mixed = [number * 60 + time for time in range(60) for number in range(3)]
    stay = representatives(POINTS[mixed], [VIDEOS[at] for at in mixed], 0.3)
    assert sorted(mixed[at] for at in stay) == representatives(POINTS, VIDEOS, 0.3)


def test_the_nearest_is_another_frame_of_the_same_video(monkeypatch: pytest.MonkeyPatch) -> None:
    between = distances()
    np.fill_diagonal(between, np.inf)
    np.testing.assert_allclose(nearest_in_video(POINTS, VIDEOS), between.min(1), rtol=1e-6)
    monkeypatch.setattr("alges_fast.selection.near_duplicates.BLOCK", 1)
    np.testing.assert_allclose(nearest_in_video(POINTS, VIDEOS), between.min(1), rtol=1e-6)
    assert np.isinf(nearest_in_video(POINTS[:2], ["a", "b"])).all()


def test_the_typical_distance_is_between_videos_where_there_are_several() -> None:
    apart = np.linalg.norm(PATHS.mean(1)[:, None] - PATHS.mean(1)[None], axis=2)[np.triu_indices(3, 1)]
    assert apart.min() < typical_distance(POINTS, VIDEOS) < apart.max()
    alone = typical_distance(POINTS[:60], VIDEOS[:60])
    assert 0 < alone < apart.min()
    assert typical_distance(POINTS[:1], VIDEOS[:1]) == 0.0
