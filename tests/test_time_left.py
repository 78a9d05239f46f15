"""What a command says of a long step: how much of it is done, and how long the rest takes."""

from __future__ import annotations

import pytest

from alges_fast.command import TimeLeft


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_the_time_left_is_that_of_the_step_so_far() -> None:
    clock = Clock()
    left = TimeLeft(clock)
    assert left.line("encoding frames", 600, 3600) == "encoding frames 600/3,600"  # gone on with where a kill left it
    clock.now += 60
    assert left.line("encoding frames", 900, 3600) == "encoding frames 900/3,600, about 9 min left"
    clock.now += 1
    assert left.line("scoring frames", 0, 3600) == "scoring frames 0/3,600"
    clock.now += 10
    assert left.line("scoring frames", 720, 3600) == "scoring frames 720/3,600, about 40 s left"
    assert left.line("scoring frames", 3600, 3600) == "scoring frames 3,600/3,600"
    assert left.line("scoring frames", 10, 3600) == "scoring frames 10/3,600"  # another pass


@pytest.mark.parametrize(
    ("seconds", "said"), [(1.0, "a 1/2"), (80.0, "80 s"), (600.0, "10 min"), (7200.0, "2 h"), (36000.0, "10 h")]
)
def test_units_are_those_people_use(seconds: float, said: str) -> None:
    clock = Clock()
    left = TimeLeft(clock)
    left.line("a", 0, 2)
    clock.now += seconds
    assert said in left.line("a", 1, 2)
