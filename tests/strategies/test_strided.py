"""Strided picks: every k-th frame, videos in turn."""

from __future__ import annotations

import itertools

import pytest

from alges_fast.strategies.strided import every_kth, in_turn


@pytest.mark.parametrize(("length", "n"), [(100, 5), (7, 3), (11, 11), (9, 1), (30, 4)])
def test_places_are_k_apart_from_the_middle_of_the_first_stride(length: int, n: int) -> None:
    found = every_kth(length, n, [], [])
    assert found[0] == length // n // 2
    assert all(later - earlier in (length // n, -(-length // n)) for earlier, later in itertools.pairwise(found))
    assert len(found) == n
    assert found[-1] < length


def test_later_rounds_fall_between_what_is_taken() -> None:
    first = every_kth(100, 5, [], [])
    assert first == [10, 30, 50, 70, 90]
    second = every_kth(100, 5, first, [])
    assert second == [0, 20, 40, 60, 80]
    third = every_kth(100, 10, [*first, *second], [])
    assert third == [5, 15, 25, 35, 45, 55, 65, 75, 85, 95]


def test_a_place_that_is_not_free_gives_way_to_the_nearest_that_is() -> None:
    assert every_kth(12, 2, [], [3, 2]) == [4, 9]
    assert sorted(every_kth(6, 4, [0], [5])) == [1, 2, 3, 4]


def test_videos_take_turns_and_those_with_fewest_labelled_frames_begin() -> None:
    videos = [[f"{name}{at}" for at in range(9)] for name in "abc"]
    free = [id for video in videos for id in video]
    begun = ["b0", "b4", "b8", "c4"]
    found = in_turn(videos, begun, free, 5)
    assert [id[0] for id in found] == ["a", "a", "c", "a", "c"]
    assert [id for id in found if id[0] == "a"] == ["a1", "a4", "a7"]


def test_a_video_without_free_frames_is_passed_over() -> None:
    assert [id[0] for id in in_turn([["a0", "a1"], ["b0", "b1", "b2"]], [], ["a1", "b0", "b1", "b2"], 9)] == list(
        "abbb"
    )
