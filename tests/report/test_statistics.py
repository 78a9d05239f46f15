"""Statistics against scipy, published values, and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from alges_fast.report.statistics import (
    LEVEL,
    area_under_curve,
    areas,
    compare,
    holm,
    learning_curves,
    resolvable_effect,
    smallest_resolvable,
    spread,
)


def table(curves: dict[str, dict[int, list[float]]]) -> list[dict[str, object]]:
    """Rows of curves[strategy][seed] = Dice at 10, 20, ... labelled images."""
    return [
        {"strategy": name, "seed": seed, "round": r, "n_labelled": 10 + 10 * r, "dice": dice}
        for name, by_seed in curves.items()
        for seed, values in by_seed.items()
        for r, dice in enumerate(values)
    ]


def test_spread_is_scipys_t_interval() -> None:
    values = [0.41, 0.44, 0.40, 0.47]
    found = spread(values)
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert (found.n, found.mean, found.sd) == (4, pytest.approx(np.mean(values)), pytest.approx(np.std(values, ddof=1)))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    one = spread([0.4])
    assert (one.n, one.mean) == (1, 0.4)
    assert all(math.isnan(x) for x in (one.sd, one.low, one.high))
    assert spread([]).n == 0
    assert math.isnan(spread([]).mean)


def test_area_is_the_mean_height_whatever_the_spacing() -> None:
    assert area_under_curve([10, 20, 40], [0.2, 0.4, 0.6]) == pytest.approx((0.3 * 10 + 0.5 * 20) / 30)
    assert area_under_curve([10, 300], [0.5, 0.5]) == pytest.approx(0.5)
    assert area_under_curve([10], [0.3]) == 0.3
    x = np.sort(np.random.default_rng(0).choice(300, 12, replace=False))
    y = np.random.default_rng(1).random(12)
    assert area_under_curve(x, y) == pytest.approx(np.trapezoid(y, x) / np.ptp(x))
    with pytest.raises(ValueError, match="increasing"):
        area_under_curve([10, 10], [0.1, 0.2])
    with pytest.raises(ValueError, match="expected as many"):
        area_under_curve([10, 20], [0.1])


def test_learning_curves_are_spreads_over_seeds_in_order_of_images() -> None:
    rows = table({"b": {0: [0.1, 0.2], 1: [0.3]}, "a": {0: [0.5, 0.6]}})
    curves = learning_curves(rows[::-1])
    assert list(curves) == ["a", "b"]
    assert list(curves["b"]) == [10, 20]
    assert curves["b"][10] == spread([0.3, 0.1])
    assert curves["b"][20].n == 1


def test_an_unfinished_seed_has_no_area() -> None:
    rows = table({"a": {0: [0.1, 0.3], 1: [0.5]}, "b": {1: [0.2, 0.2]}})
    assert areas(rows) == {"a": {0: pytest.approx(0.2)}, "b": {1: pytest.approx(0.2)}}


def test_comparison_is_scipys_paired_test_over_the_seeds_in_common() -> None:
    generator = np.random.default_rng(3)
    a, b, c = (dict(enumerate(generator.normal(mean, 0.02, 6))) for mean in (0.5, 0.47, 0.49))
    del b[2]
    found = compare({"a": a, "b": b, "c": c})
    assert [(f.first, f.second, f.n) for f in found] == [("a", "b", 5), ("a", "c", 6), ("b", "c", 5)]
    seeds = [0, 1, 3, 4, 5]
    test = stats.ttest_rel([a[s] for s in seeds], [b[s] for s in seeds])
    assert found[0].p == pytest.approx(test.pvalue)
    assert (found[0].low, found[0].high) == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert found[0].difference == pytest.approx(np.mean([a[s] - b[s] for s in seeds]))
    assert [f.p_holm for f in found] == holm([f.p for f in found])
    assert compare({"a": {0: 0.1, 1: 0.2}, "b": {1: 0.3, 2: 0.1}}) == []


def test_equal_curves_never_separate_and_a_constant_difference_does() -> None:
    values = {"a": {0: 0.25, 1: 0.5}, "b": {0: 0.25, 1: 0.5}, "c": {0: 0.5, 1: 0.75}}
    same, different, _ = compare(values)
    assert (same.p, same.p_holm, same.separates) == (1.0, 1.0, False)
    assert (different.p, different.separates) == (0.0, True)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_rejects_what_the_step_down_definition_rejects(p: list[float]) -> None:
    rejected = set()
    for step, index in enumerate(np.argsort(p, kind="stable")):
        if p[index] * (len(p) - step) >= LEVEL:
            break
        rejected.add(int(index))
    assert {i for i, adjusted in enumerate(holm(p)) if adjusted < LEVEL} == rejected
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # the textbook's
    assert holm([]) == []


@pytest.mark.parametrize("n", [5, 10, 30])
def test_resolvable_effect_is_that_of_the_noncentral_t(n: int) -> None:
    effect = resolvable_effect(n)
    critical = stats.t.ppf(0.975, n - 1)
    power = stats.nct.sf(critical, n - 1, effect) + stats.nct.cdf(-critical, n - 1, effect)
    assert power == pytest.approx(0.8, abs=1e-3)


def test_smallest_resolvable_scales_with_noise_and_shrinks_with_seeds() -> None:
    generator = np.random.default_rng(0)

    def run(n: int, sd: float) -> float:
        values = {name: dict(enumerate(generator.normal(0, sd / math.sqrt(2), n))) for name in "abcdef"}
        return smallest_resolvable(compare(values))

    assert run(200, 0.01) == pytest.approx(resolvable_effect(200, 0.05 / 15) * 0.01 / math.sqrt(200), rel=0.05)
    assert run(3, 0.01) > run(10, 0.01) > run(200, 0.01)
    assert math.isnan(smallest_resolvable([]))
