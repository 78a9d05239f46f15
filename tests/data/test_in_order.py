"""Work on all cores, its results in order."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator

import pytest

from alges_fast.data.loading import map_in_order


def test_results_are_in_the_order_of_the_items() -> None:
    def later_is_quicker(number: int) -> int:
        time.sleep(0.002 * (5 - number % 6))
        return number * number

    assert list(map_in_order(later_is_quicker, range(50), ahead=2)) == [number * number for number in range(50)]


def test_the_next_items_are_made_while_others_are_computed() -> None:
    made = threading.Event()

    def items() -> Iterator[int]:
        yield 0
        made.set()  # asked for while the first one is not done
        yield 1

    def wait(number: int) -> int:
        assert made.wait(10)
        return number

    assert list(map_in_order(wait, items(), ahead=2)) == [0, 1]


def test_few_are_computed_ahead_of_what_is_taken() -> None:
    started: list[int] = []
    results = map_in_order(lambda number: started.append(number), range(10_000), ahead=2)
    next(results)
    assert len(started) <= 2 * min(16, os.cpu_count() or 1)


def test_an_error_comes_in_its_place_and_ends_the_work() -> None:
    started: list[int] = []

    def fails(number: int) -> int:
        started.append(number)
        if number == 3:
            raise ValueError("third")
        return number

    results = map_in_order(fails, range(10_000), ahead=1)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="third"):
        next(results)
    assert len(started) < 10_000
