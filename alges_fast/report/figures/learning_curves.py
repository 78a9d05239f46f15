"""Dice over what was labelled: all curves in one panel, a panel each, or a row each where there was one training."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from alges_fast.report.figures.layout import Styles, new_figure, new_rows, text_width
from alges_fast.report.run_folder import RunFolder
from alges_fast.report.saving import FULL_PART, measures_of, of_a_frame
from alges_fast.report.statistics import Row, Spread, by_run, curves_over, spread
from alges_fast.report.style import StrategyStyle, Theme

BANDS_TOGETHER = 3  # more curves than this, and their bands hide each other in one panel


@dataclass(frozen=True)
class Axis:
    """What learning curves are drawn over.

    Attributes:
        column: of results.csv.
        unit: how much of the column is 1 on the axis.
    """

    column: str
    label: str
    unit: float = 1.0
    log: bool = False

    def curves(self, rows: Sequence[Row]) -> dict[str, dict[float, Spread]]:
        """Spread of the Dice by strategy and place on the axis, of the mean over seeds."""
        return {
            name: {x / self.unit: at for x, at in curve.items()}
            for name, curve in curves_over(rows, self.column).items()
        }

    def of(self, row: Row) -> float:
        return float(row[self.column]) / self.unit


def axes_of(run: RunFolder) -> list[Axis]:
    """What a run's curves are drawn over: images; or, with windows, every measure that has an axis."""
    if not run.windows:
        return [Axis("n_labelled", f"labelled images (of {run.pool_size})" if run.pool_size else "labelled images")]
    first = [row for row in run.curve_rows if row["round"] == 0]  # whole frames, whatever is chosen later
    measures = [measure for measure in measures_of(run.curve_rows, windows=True) if measure.axis]
    return [Axis(m.column, m.axis, m.unit or of_a_frame(first, m.column), log=m.log) for m in measures]


def curves(
    rows: Sequence[Row],
    full: Sequence[Row],
    styles: Styles,
    theme: Theme,
    *,
    axis: Axis,
    faint: Collection[str] = (),
) -> Figure:
    """Dice over what was labelled, a line per strategy with its name at its end; `full` is a horizontal line (Fig. 4),
    and the part of it that is asked after a dotted one.

    Strategies in `faint` are thin grey lines without a name, where there are too many to tell apart.
    With one training there is no curve: then a row per strategy, with its seeds, mean and interval.
    """
    found = axis.curves(rows)
    if max(len(curve) for curve in found.values()) == 1:
        return _one_training(rows, full, styles, theme)
    shown = {name: curve for name, curve in found.items() if name not in faint}
    fig, ax = new_figure(theme, height=5.0 if len(shown) > 5 else 4.2, left=0.72, right=0.3, bottom=0.55, top=0.2)
    limits = _dice_limits([*rows, *full])
    for name in sorted(found.keys() - shown.keys()):
        ax.plot(
            list(found[name]), [at.mean for at in found[name].values()], color=theme.muted, linewidth=0.7, alpha=0.4
        )
    for name, curve in shown.items():
        x = list(curve)
        _line(ax, x, [curve[n].mean for n in x], styles[name])
        if len(shown) <= BANDS_TOGETHER:
            _band(ax, curve, styles[name])
    ax.set_ylim(limits)
    ax.margins(x=0.02)
    ends = {name: curve[max(curve)].mean for name, curve in shown.items()}
    if full:
        ends["full"] = _full_lines(ax, full, styles, theme)
        height = FULL_PART * ends["full"]
        ax.annotate(
            f"{100 * FULL_PART:.0f} % of full",
            (0, height),
            (4, 2),
            ("axes fraction", "data"),
            "offset points",
            fontsize=7.5,
            color=theme.muted,
        )
    points = sorted({x for curve in shown.values() for x in curve})
    if axis.log:
        ax.set_xscale("log")
        ticks = [10**power * digit for power in range(6) for digit in (1, 2, 5)]
        low, high = ax.get_xlim()
        ax.set_xticks(
            [tick for tick in ticks if low <= tick <= high], [f"{tick}" for tick in ticks if low <= tick <= high]
        )
        ax.minorticks_off()
    elif len(points) <= 8 and all(float(x).is_integer() for x in points):
        ax.set_xticks(points, [f"{x:g}" for x in points])
    else:
        ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    ax.set_xlabel(axis.label)
    ax.set_ylabel("test Dice")
    ax.grid(axis="y")
    last = max(n for curve in shown.values() for n in curve)
    places = {name: (max(shown[name]) if name in shown else last, value) for name, value in ends.items()}
    _label_ends(fig, ax, places, styles, theme)
    return fig


def curves_apart(rows: Sequence[Row], full: Sequence[Row], styles: Styles, theme: Theme, *, axis: Axis) -> Figure:
    """A panel per strategy: its mean with the 95 % band, its seeds as thin lines, and the first strategy in grey."""
    found = axis.curves(rows)
    columns = min(2 if theme.narrow else 4, len(found))
    lines = math.ceil(len(found) / columns)
    panel = 1.5
    height = 0.75 + lines * (panel + 0.35)
    fig = Figure(figsize=(theme.width, height))
    panels = fig.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    fig.subplots_adjust(
        left=0.65 / theme.width,
        right=1 - 0.1 / theme.width,
        bottom=0.55 / height,
        top=1 - 0.3 / height,
        wspace=0.1,
        hspace=0.35 / panel,
    )
    reference, runs = next(iter(found)), by_run(rows)
    limits = _dice_limits([*rows, *full])
    for i, (name, curve) in enumerate(found.items()):
        ax = panels[i // columns, i % columns]
        if name != reference:
            others = found[reference]
            ax.plot(list(others), [others[n].mean for n in others], color=theme.muted, linewidth=1, alpha=0.8)
        if len(runs[name]) > 1:
            for run in runs[name].values():
                x, y = [axis.of(row) for row in run], [row["dice"] for row in run]
                ax.plot(x, y, color=styles[name].colour, linewidth=0.6, alpha=0.55)
        _band(ax, curve, styles[name])
        _line(ax, list(curve), [curve[n].mean for n in curve], styles[name], marker=False)
        if full:
            _full_lines(ax, full, styles, theme)
        ax.set_title(name, loc="left", fontsize=9.5, pad=3)
        ax.grid(axis="y")
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        ax.yaxis.set_major_locator(MaxNLocator(4))
    for ax in panels.flat[len(found) :]:
        ax.set_visible(False)
    for column in range(columns):  # the lowest panel of a column carries the numbers, also where the last line is short
        last = (len(found) - 1 - column) // columns
        panels[last, column].xaxis.set_tick_params(labelbottom=True)
    panels[0, 0].set_ylim(limits)
    fig.supxlabel(axis.label, fontsize=10, y=0.1 / height)
    fig.supylabel("test Dice", fontsize=10, x=0.06 / theme.width)
    return fig


def _one_training(rows: Sequence[Row], full: Sequence[Row], styles: Styles, theme: Theme) -> Figure:
    runs = reversed(by_run(rows).items())
    ordered = [(name, [row["dice"] for run in of_seeds.values() for row in run]) for name, of_seeds in runs]
    notes = [f"{spread(values).mean:.3f}" for _, values in ordered]
    fig, ax = new_rows(theme, [name for name, _ in ordered], notes, top=0.35, bottom=0.55)
    for y, (name, values) in enumerate(ordered):
        found, style = spread(values), styles[name]
        ax.plot(values, [y] * len(values), "o", color=style.colour, alpha=0.4, markersize=4)
        ax.plot([found.low, found.high], [y, y], color=style.colour, linewidth=2)
        ax.plot(found.mean, y, style.marker, color=style.colour, markersize=7)
    ax.set_xlim(_dice_limits([*rows, *full]))
    if full:
        level = spread(row["dice"] for row in full).mean
        ax.axvline(level, color=theme.ink, linewidth=1.2, linestyle=styles["full"].dash)
        ax.annotate(
            f"full {level:.3f}", (level, 1), (0, 4), ("data", "axes fraction"), "offset points", ha="center", fontsize=9
        )
    ax.grid(axis="x")
    ax.set_xlabel(f"test Dice with {rows[0]['n_labelled']} labelled images")
    return fig


def _line(ax: Axes, x: Sequence[float], y: Sequence[float], style: StrategyStyle, *, marker: bool = True) -> None:
    mark: dict[str, Any] = {"marker": style.marker, "markersize": 4} if marker and len(x) <= 12 else {}
    ax.plot(x, y, color=style.colour, linestyle=style.dash, linewidth=1.8, **mark)


def _band(ax: Axes, curve: Mapping[float, Spread], style: StrategyStyle) -> None:
    low, high = [curve[n].low for n in curve], [curve[n].high for n in curve]
    ax.fill_between(list(curve), low, high, color=style.colour, alpha=0.18, linewidth=0)


def _dice_limits(rows: Sequence[Row]) -> tuple[float, float]:
    """Limits that show every run; the interval of two or three seeds may reach past them."""
    values = [row["dice"] for row in rows if math.isfinite(row["dice"])] or [0.0, 1.0]
    pad = max(0.08 * (max(values) - min(values)), 0.01)
    return max(0.0, min(values) - pad), min(1.0, max(values) + pad)


def _full_lines(ax: Axes, full: Sequence[Row], styles: Styles, theme: Theme) -> float:
    """Draw the mean Dice of full supervision, and the part of it that is asked after; the mean."""
    level = spread(row["dice"] for row in full).mean
    ax.axhline(level, color=theme.ink, linewidth=1.2, linestyle=styles["full"].dash)
    ax.axhline(FULL_PART * level, color=theme.muted, linewidth=1, linestyle=":")
    return level


def _label_ends(fig: Figure, ax: Axes, ends: Mapping[str, tuple[float, float]], styles: Styles, theme: Theme) -> None:
    """Write each line's name right of the axes, about level with its end (x, y), joined to it by a leader."""
    size = 8.0 if theme.narrow else 9.0
    texts = [name if theme.narrow else f"{name} {y:.3f}" for name, (_, y) in ends.items()]
    leader = 0.3
    box = ax.get_position()
    width = box.width - (leader + 0.05 + text_width(texts, size)) / theme.width
    ax.set_position((box.x0, box.y0, width, box.height))
    width_inches, height_inches = width * theme.width, box.height * fig.get_figheight()
    to_axes = (ax.transData - ax.transAxes).transform
    starts = [to_axes(point) for point in ends.values()]
    placed = spaced([y for _, y in starts], size / 72 * 1.35 / height_inches, 0.0, 1.0)
    for name, text, (x, y), level in zip(ends, texts, starts, placed, strict=True):
        style, beyond = styles[name], 1 + leader / width_inches
        ax.plot(
            [max(x, 1.0), beyond] if name == "full" else [x, beyond],
            [y, level],
            color=theme.ink if name == "full" else style.colour,
            linestyle=style.dash,
            linewidth=1 if x > 0.9 else 0.6,  # a curve that ends early goes on in a line that is not one
            alpha=1 if x > 0.9 else 0.5,
            transform=ax.transAxes,
            clip_on=False,
        )
        ax.text(beyond + 0.05 / width_inches, level, text, va="center", fontsize=size, transform=ax.transAxes)


def spaced(positions: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions moved as little as needed to lie at least `gap` apart and, if they all fit, between low and high."""
    order = sorted(range(len(positions)), key=lambda i: positions[i])
    groups: list[list[float]] = []  # [sum of wished positions less the offsets inside the group, members]
    for i, index in enumerate(order):
        groups.append([positions[index] - i * gap, 1])
        while len(groups) > 1 and groups[-2][0] / groups[-2][1] >= groups[-1][0] / groups[-1][1]:
            total, members = groups.pop()
            groups[-1][0] += total
            groups[-1][1] += members
    levels = [total / members for total, members in groups for _ in range(int(members))]
    last = high - (len(order) - 1) * gap
    placed = [0.0] * len(order)
    for i, index in enumerate(order):
        placed[index] = max(low, min(levels[i], last)) + i * gap
    return placed
