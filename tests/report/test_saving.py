"""Label saving against cases worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from alges_fast.prices import Prices
from alges_fast.report.saving import FRAMES, OUTLINE, PIXELS, Measure, first_reached, savings
from alges_fast.report.statistics import compare_differences, differences_at_equal

Points = list[tuple[float, float]]


def table(curves: dict[str, list[Points]], frames: float = 1.0) -> list[dict[str, object]]:
    """Rows of curves[strategy][seed] = (outline, Dice) after 10, 20, ... frames' worth of pixels."""
    return [
        {
            "strategy": name,
            "seed": seed,
            "round": r,
            "n_labelled": 10 * (r + 1),
            "outline": outline,
            "dice": dice,
            "labelled_share": (r + 1) / 10,
            "n_frames": frames * 10 * (r + 1),
        }
        for name, by_seed in curves.items()
        for seed, points in enumerate(by_seed)
        for r, (outline, dice) in enumerate(points)
    ]


RANDOM: Points = [(100, 0.2), (200, 0.4), (300, 0.5)]


def test_the_factor_is_what_the_baseline_needs_over_what_was_spent() -> None:
    # Dice .45 lies half way between random's .4 and .5, at 250, and took 125; .3 lies at 150 and took 150.
    rows = table({"random": [RANDOM], "a": [[(100, 0.2), (125, 0.45), (150, 0.3)]]})
    found = savings(rows, "a")
    assert list(found) == [20, 30]
    assert (found[20].factor, found[20].bound, found[20].n) == (pytest.approx(2.0), "", 1)
    assert found[20].frames == pytest.approx(25)
    assert found[30].factor == pytest.approx(1.0)
    assert math.isnan(found[20].low)  # one seed says nothing of others
    assert savings(rows, "a", measure=PIXELS)[20].factor == pytest.approx(0.25 / 0.2)  # pixels are counted as pixels


@pytest.mark.parametrize(
    ("random", "points", "expected"),
    [  # beyond the baseline's curve there are bounds
        (RANDOM, [(100, 0.2), (120, 0.51), (150, 0.1)], {20: (300 / 120, ">"), 30: (100 / 150, "<")}),
        # Random first reaches .38 on its way to .4, whatever it does afterwards.
        ([(100, 0.2), (200, 0.4), (300, 0.35), (400, 0.5)], [(100, 0.2), (100, 0.38)], {20: (1.9, "")}),
    ],
)
def test_bounds_and_dips(random: Points, points: Points, expected: dict[int, tuple[float, str]]) -> None:
    found = savings(table({"random": [random], "a": [points]}), "a")
    assert {n: (one.factor, one.bound) for n, one in found.items()} == {
        n: (pytest.approx(factor), bound) for n, (factor, bound) in expected.items()
    }


def test_prices_make_seconds_of_what_was_opened_looked_at_and_drawn() -> None:
    rows = table({"random": [RANDOM], "a": [[(100, 0.2), (125, 0.45)]]})
    for row in rows:
        row |= {"pictures": row["n_frames"], "openings": row["n_frames"], "windows": row["n_frames"], "side": 10.0}
        if row["strategy"] == "a" and row["round"] == 1:
            row |= {"pictures": 12, "openings": 60, "windows": 300}
    # Random frames reach .45 at 250 pixels and 25 frames.
    random = 5 * 25 + 2 * 25 + 100 * 25
    sheets = Measure("outline", "", prices=Prices())
    frames = Measure("outline", "", prices=Prices(), pictures="openings")
    assert savings(rows, "a", measure=sheets)[20].factor == pytest.approx(random / (5 * 12 + 2 * 300 + 1250))
    assert savings(rows, "a", measure=frames)[20].factor == pytest.approx(random / (5 * 60 + 2 * 300 + 1250))


def test_means_over_seeds_come_first() -> None:
    # Seeds alone give 300 / 150 and 100 / 150 (bounds); their means give .35 at 175.
    rows = table({"random": [RANDOM] * 2, "a": [[(100, 0.2), (150, 0.6)], [(100, 0.2), (150, 0.1)]]})
    assert savings(rows, "a")[20].factor == pytest.approx(175 / 150)


def test_the_interval_is_that_of_paired_seeds() -> None:
    """Seeds whose own factors are 1.5 and 2.5 and whose luck is common to both: the interval lies between these."""
    curves: dict[str, list[Points]] = {"random": [], "a": []}
    for seed in range(12):
        luck = 0.1 * (seed % 3)
        curves["random"].append([(x, y + luck) for x, y in RANDOM])
        curves["a"].append([(100, 0.2 + luck), (100, 0.3 + luck if seed % 2 else 0.45 + luck + 0.0)])
    found = savings(table(curves), "a")[20]
    assert found.factor == pytest.approx(1.875)  # mean Dice .375
    assert 1.5 <= found.low < 1.7 < found.factor < 2.0 < found.high <= 2.5
    assert savings(table(curves), "a")[20] == found
    unpaired = [row | {"seed": (row["seed"] + (row["strategy"] == "a")) % 12} for row in table(curves)]
    other = savings(unpaired, "a")[20]  # type: ignore[arg-type]
    assert other.high - other.low > found.high - found.low


def test_an_interval_that_nothing_bounds_is_open() -> None:
    curves = {"random": [RANDOM] * 4, "a": [[(100, 0.2), (100, 0.5 + 0.01 * (seed - 2))] for seed in range(4)]}
    found = savings(table(curves), "a")[20]
    assert found.bound == ""
    assert found.low < found.factor
    assert math.isinf(found.high)
    below = {"random": [RANDOM] * 4, "a": [[(100, 0.2), (100, 0.1)]] * 4}
    found = savings(table(below), "a")[20]
    assert (found.bound, found.low, found.high) == ("<", 0.0, 1.0)


def test_seeds_that_are_not_finished_do_not_count() -> None:
    curves = {"random": [RANDOM, RANDOM[:2]], "a": [[(100, 0.2), (125, 0.45)], [(100, 0.2), (125, 0.9)]]}
    assert savings(table(curves), "a")[20].factor == pytest.approx(2.0)
    assert savings(table({"a": curves["a"]}), "a") == {}
    assert savings([{k: v for k, v in row.items() if k != "outline"} for row in table(curves)], "a") == {}


def test_first_reached_against_a_scan() -> None:
    generator = np.random.default_rng(0)
    x = np.cumsum(generator.uniform(1, 2, (40, 6)), axis=1)
    y = generator.uniform(0, 1, (40, 6))
    levels = generator.uniform(-0.1, 1.1, (40, 3))
    places, sides = first_reached(x, y, levels)
    for b in range(40):
        fine = np.linspace(x[b, 0], x[b, -1], 100_001)
        heights = np.interp(fine, x[b], y[b])
        for i, level in enumerate(levels[b]):
            if level < y[b, 0]:
                expected, side = x[b, 0], -1
            elif (heights >= level).any():
                expected, side = fine[(heights >= level).argmax()], 0
            else:
                expected, side = x[b, -1], 1
            if side == 1 and level <= y[b].max():  # the scan steps over the very top
                continue
            assert (places[b, i], sides[b, i]) == (pytest.approx(expected, abs=1e-3), side)


def test_a_measure_names_its_column() -> None:
    row = table({"a": [RANDOM]})[0]
    assert {OUTLINE.column, PIXELS.column, FRAMES.column} <= row.keys()


def test_differences_at_equal_effort_cover_what_both_curves_have() -> None:
    # Over 100 to 150, which both have: a rises from .2 to .6, mean .4; random from .2 to .3, mean .25.
    rows = table({"random": [RANDOM, RANDOM], "a": [[(100, 0.2), (150, 0.6)], [(100, 0.2), (300, 0.2)]]})
    found = differences_at_equal(rows, "a", "random", "outline")
    # The other seed over 100 to 300: a stays at .2; random's mean is (.3 + .45) / 2.
    assert found == {0: pytest.approx(0.15), 1: pytest.approx(0.2 - 0.375)}
    assert differences_at_equal(rows, "a", "random", "minutes") == {}
    assert [(c.first, c.n) for c in compare_differences([("a", "random", found), ("b", "random", {0: 0.1})])] == [
        ("a", 2)
    ]


def test_trainings_that_drew_nothing_more_count_by_the_last() -> None:
    rows = table({"random": [RANDOM], "a": [[(100, 0.2), (200, 0.3), (200, 0.4), (300, 0.5)]]})
    assert differences_at_equal(rows, "a", "random", "outline") == {0: pytest.approx(0.0)}
