"""What annotating took in this project, where the tool says how long pictures were open: seconds a window and a frame,
and the three prices of `alges_fast.prices` fitted to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alges_fast.prices import Prices
from alges_fast.project.folder import Project, TimedPicture
from alges_fast.random_streams import stream_seed

ENOUGH = 20
"""Timed pictures from which on prices are fitted."""
RESAMPLES = 200


@dataclass(frozen=True)
class FittedPrices:
    """Prices in seconds, each with a 95 % interval from resampling the pictures.

    Attributes:
        prices: least squares, none below 0.
        low, high: the intervals' ends.
        n_pictures: that they are fitted to.
    """

    prices: Prices
    low: Prices
    high: Prices
    n_pictures: int

    def __str__(self) -> str:
        names = ("open", "look", "draw")
        values = [[getattr(prices, name) for prices in (self.prices, self.low, self.high)] for name in names]
        parts = [
            f"{name} {v:.3g} s ({low:.3g} to {high:.3g})" for name, (v, low, high) in zip(names, values, strict=True)
        ]
        return f"prices fitted to {self.n_pictures} pictures: {', '.join(parts)} a side of outline"


def fit_prices(times: Sequence[TimedPicture]) -> FittedPrices | None:
    """None where fewer than `ENOUGH` pictures have a time."""
    if len(times) < ENOUGH:
        return None
    from scipy.optimize import nnls

    terms = np.array([(1.0, picture.looks, picture.sides) for picture in times])
    seconds = np.array([picture.seconds for picture in times])
    generator = np.random.default_rng(stream_seed("prices", len(times)))
    draws = generator.integers(0, len(times), (RESAMPLES, len(times)))
    fits = np.stack([nnls(terms[rows], seconds[rows])[0] for rows in draws])
    low, high = np.percentile(fits, [2.5, 97.5], axis=0)
    return FittedPrices(_prices(nnls(terms, seconds)[0]), _prices(low), _prices(high), len(times))


def timing_lines(project: Project) -> list[str]:
    """Seconds a window and a frame by round and by class, and prices; nothing where no tool kept them."""
    lines = []
    everything = [picture for import_ in project.imports for picture in import_.times]
    for round in project.rounds:
        times = [picture for import_ in project.imports if import_.round == round.number for picture in import_.times]
        lines += [f"round {round.number}: {said}" for said in [_means(times)] if said]
    by_class: dict[int, list[TimedPicture]] = {}
    for picture in everything:
        by_class.setdefault(picture.class_id, []).append(picture)
    for class_id, times in sorted(by_class.items()):
        if class_id < len(project.config.classes) and len(by_class) > 1:
            lines.append(f"mostly {project.config.classes[class_id]}: {_means(times)}")
    fitted = fit_prices(everything)
    if fitted is not None:
        lines.append(str(fitted))
    return lines


def prices_of(project: Project) -> tuple[Prices, bool]:
    """The project's own where enough is timed, else the defaults; which of the two."""
    fitted = fit_prices([picture for import_ in project.imports for picture in import_.times])
    return (Prices(), False) if fitted is None else (fitted.prices, True)


def _means(times: Sequence[TimedPicture]) -> str:
    parts = []
    for unit, whole in (("window", False), ("frame", True)):
        of_unit = [picture for picture in times if picture.whole == whole]
        looks = sum(picture.looks for picture in of_unit)
        if looks:
            parts.append(f"{sum(picture.seconds for picture in of_unit) / looks:.1f} s a {unit} ({looks})")
    return ", ".join(parts)


def _prices(values: NDArray[np.float64]) -> Prices:
    return Prices(*map(float, values))
