"""The report's figures. Each function draws one in a given `Look` and returns it; nothing here reads or writes files.

Layouts are in inches, because a figure is drawn anew for wide and narrow screens instead of being shrunk.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import FuncFormatter, MaxNLocator

from alges_fast.labels import UNLABELLED
from alges_fast.report.artefacts import THUMBNAIL, DatasetSummary, FrameMaps, PickRecord
from alges_fast.report.saving import Saving
from alges_fast.report.statistics import (
    Comparison,
    Row,
    Spread,
    choosing_seconds,
    curves_over,
    spread,
)
from alges_fast.report.style import PART_COLOURS, Look, StrategyStyle
from alges_fast.report.text import factor, p_value, signed
from alges_fast.windows import Window, named

BANDS_TOGETHER = 3  # more curves than this, and their bands hide each other in one panel
FULL_NEAR = 0.25  # `full` further above the curves than this part of their range is off their scale
PICKS_SHOWN = 10
ROUNDS_SHOWN = 8
FRAMES_SHOWN = 4

Styles = Mapping[str, StrategyStyle]


@dataclass(frozen=True)
class Axis:
    """What learning curves are drawn over.

    Attributes:
        column: of results.csv.
        label: of the axis.
        unit: how much of the column is 1 on the axis.
        log: whether the axis is logarithmic.
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


def images_axis(pool: int | None) -> Axis:
    """Labelled images, of a pool of so many where that is known."""
    return Axis("n_labelled", f"labelled images (of {pool})" if pool else "labelled images")


def curves(
    rows: Sequence[Row],
    full: Sequence[Row],
    styles: Styles,
    look: Look,
    *,
    axis: Axis,
    faint: Collection[str] = (),
) -> Figure:
    """Dice over what was labelled, a line per strategy with its name at its end; `full` is a horizontal line (Fig. 4).

    Strategies in `faint` are thin grey lines without a name, where there are too many to tell apart.
    Where `full` lies far above, its line would press the curves together: then it is written at the top instead.
    With one training there is no curve: then a row per strategy, with its seeds, mean and interval.
    """
    found = axis.curves(rows)
    if max(len(curve) for curve in found.values()) == 1:
        return _one_training(rows, full, styles, look)
    told = {name: curve for name, curve in found.items() if name not in faint}
    fig, ax = _figure(look, height=5.0 if len(told) > 5 else 4.2, left=0.62, right=0.3, bottom=0.55, top=0.2)
    level, limits = _full_and_limits(rows, full)
    for name in sorted(found.keys() - told.keys()):
        ax.plot(list(found[name]), [at.mean for at in found[name].values()], color=look.muted, linewidth=0.7, alpha=0.4)
    found = told
    for name, curve in found.items():
        x = list(curve)
        _line(ax, x, [curve[n].mean for n in x], styles[name])
        if len(found) <= BANDS_TOGETHER:
            _band(ax, curve, styles[name])
    ax.set_ylim(limits)
    ax.margins(x=0.02)
    ends = {name: curve[max(curve)].mean for name, curve in found.items()}
    if full and level <= limits[1]:
        ax.axhline(level, color=look.ink, linewidth=1.2, linestyle=styles["full"].dash)
        ends["full"] = level
    elif full:
        ax.text(0.02, 0.985, f"full: {level:.3f}, off the scale ↑", transform=ax.transAxes, va="top", fontsize=9)
    points = sorted({x for curve in found.values() for x in curve})
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
    last = max(n for curve in found.values() for n in curve)
    places = {name: (max(found[name]) if name in found else last, value) for name, value in ends.items()}
    _label_ends(fig, ax, places, styles, look)
    return fig


def curves_apart(rows: Sequence[Row], full: Sequence[Row], styles: Styles, look: Look, *, axis: Axis) -> Figure:
    """A panel per strategy: its mean with the 95 % band, its seeds as thin lines, and the first strategy in grey."""
    found = axis.curves(rows)
    columns = min(2 if look.narrow else 4, len(found))
    lines = math.ceil(len(found) / columns)
    panel = 1.5
    height = 0.75 + lines * (panel + 0.35)
    fig = Figure(figsize=(look.width, height))
    FigureCanvasAgg(fig)
    panels = fig.subplots(lines, columns, sharex=True, sharey=True, squeeze=False)
    fig.subplots_adjust(
        left=0.65 / look.width,
        right=1 - 0.1 / look.width,
        bottom=0.55 / height,
        top=1 - 0.3 / height,
        wspace=0.1,
        hspace=0.35 / panel,
    )
    reference = next(iter(found))
    level, limits = _full_and_limits(rows, full)
    for i, (name, curve) in enumerate(found.items()):
        ax = panels[i // columns, i % columns]
        if name != reference:
            others = found[reference]
            ax.plot(list(others), [others[n].mean for n in others], color=look.muted, linewidth=1, alpha=0.8)
        by_seed: dict[int, list[Row]] = {}
        for row in rows:
            if row["strategy"] == name:
                by_seed.setdefault(row["seed"], []).append(row)
        if len(by_seed) > 1:
            for run in by_seed.values():
                x, y = [axis.of(row) for row in run], [row["dice"] for row in run]
                ax.plot(x, y, color=styles[name].colour, linewidth=0.6, alpha=0.55)
        _band(ax, curve, styles[name])
        _line(ax, list(curve), [curve[n].mean for n in curve], styles[name], marker=False)
        if full and level <= limits[1]:
            ax.axhline(level, color=look.ink, linewidth=0.8, linestyle=styles["full"].dash)
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
    fig.supylabel("test Dice", fontsize=10, x=0.06 / look.width)
    return fig


def forest(
    comparisons: Sequence[Comparison], styles: Styles, look: Look, *, resolvable: float, baseline: str, what: str
) -> Figure:
    """Differences to one reference with 95 % intervals; a filled dot separates after Holm."""
    ordered = sorted(comparisons, key=lambda comparison: comparison.difference)
    intervals = ["" if look.narrow else f"  [{signed(c.low)}, {signed(c.high)}]" for c in ordered]
    notes = [f"{signed(c.difference)}{interval}" for c, interval in zip(ordered, intervals, strict=True)]
    p_values = [p_value(c.p_holm) for c in ordered]
    p_width = _text_width([*p_values, "p (Holm)"], look)
    names = [c.first for c in ordered]
    fig, ax = _figure(
        look,
        height=1.45 + 0.32 * len(ordered),
        left=0.2 + _text_width(names, look),
        right=0.4 + _text_width(notes, look) + p_width,
        bottom=0.85,
        top=0.45,
    )
    # Two seeds' intervals may be a hundred times as wide as the differences: those run off the paper.
    furthest = max(max(abs(c.difference) for c in ordered), 0.002)
    reach = 1.1 * min(5 * furthest, max(resolvable, *(max(abs(c.low), abs(c.high)) for c in ordered)))
    ax.axvspan(-resolvable, resolvable, color=look.grid, alpha=0.6, linewidth=0, zorder=0)
    ax.axvline(0, color=look.muted, linewidth=1)
    to_edge = 0.3 + _text_width(notes, look) + p_width
    for y, c in enumerate(ordered):
        style = styles[c.first]
        ax.plot([c.low, c.high], [y, y], color=style.colour, linewidth=2)
        face = style.colour if c.separates else look.paper
        ax.plot(
            c.difference, y, "o", markersize=7, markerfacecolor=face, markeredgecolor=style.colour, markeredgewidth=1.6
        )
        beside: dict[str, Any] = {
            "xycoords": ("axes fraction", "data"),
            "textcoords": "offset points",
            "va": "center",
            "fontsize": 9,
        }
        ax.annotate(notes[y], (1, y), (8, 0), **beside)
        ax.annotate(p_values[y], (1, y), (72 * to_edge, 0), ha="right", **beside)
    ax.annotate("p (Holm)", (1, 1), (72 * to_edge, 8), "axes fraction", "offset points", ha="right", fontsize=9)
    ax.set_yticks(range(len(ordered)), names)
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(-0.7, len(ordered) - 0.3)
    ax.set_xlim(-reach, reach)
    ax.xaxis.set_major_locator(MaxNLocator(4 if look.narrow else 6, symmetric=True))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: signed(value) if value else "0"))
    ax.set_xlabel(f"difference in {what}")
    _title(ax, f"each strategy minus {baseline}", look)
    between = "\n" if look.narrow else " · "
    key = f"filled: separates after Holm{between}grey: true differences these seeds would find less than 4 times in 5"
    fig.text(0.1 / look.width, 0.06 / fig.get_figheight(), key, fontsize=7.5 if look.narrow else 8.5, color=look.muted)
    return fig


def label_savings(found: Mapping[str, Saving], styles: Styles, look: Look, *, baseline: str, what: str) -> Figure:
    """Savings with 95 % intervals on a logarithmic axis, the largest on top; a filled dot's interval excludes 1.

    A bound is an arrow head instead of a dot; what nothing bounds runs off the paper.
    """
    ordered = sorted(found.items(), key=lambda item: item[1].factor)
    names = [name for name, _ in ordered]
    notes = [factor(saving, interval=not look.narrow) for _, saving in ordered]
    fig, ax = _figure(
        look,
        height=1.25 + 0.32 * len(ordered),
        left=0.2 + _text_width(names, look),
        right=0.25 + _text_width(notes, look),
        bottom=0.6,
        top=0.4,
    )
    ends = [x for _, s in ordered for x in (s.factor, s.low, s.high) if math.isfinite(x) and x > 0]
    low, high = min(0.7, *ends) / 1.1, max(1.5, *ends) * 1.1
    ax.set_xscale("log")
    ax.set_xlim(low, high)
    ax.axvline(1, color=look.muted, linewidth=1)
    for y, (name, saving) in enumerate(ordered):
        colour = styles[name].colour
        ax.plot([max(saving.low, low), min(saving.high, high)], [y, y], color=colour, linewidth=2)
        face = colour if saving.low > 1 or saving.high < 1 else look.paper
        mark = saving.bound or "o"
        ax.plot(saving.factor, y, mark, markersize=7, color=colour, markerfacecolor=face, markeredgewidth=1.6)
        ax.annotate(notes[y], (1, y), (8, 0), ("axes fraction", "data"), "offset points", va="center", fontsize=9)
    ax.set_yticks(range(len(ordered)), names)
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(-0.7, len(ordered) - 0.3)
    ticks = [tick for tick in (0.1, 0.2, 0.5, 1, 2, 3, 5, 10, 20, 50) if low <= tick <= high]
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    ax.grid(axis="x")
    fig.text(0.5, 0.12 / fig.get_figheight(), f"times as much {what}", ha="center")
    _title(ax, f"what {baseline} needed for the same Dice", look)
    return fig


def class_dice(rows: Sequence[Row], classes: Sequence[str], strategies: Sequence[str], look: Look) -> Figure:
    """Mean Dice per class (row) and strategy (column) over the given rows; a dash where the truth has no such class."""
    values = np.full((len(classes), len(strategies)), np.nan)
    for j, name in enumerate(strategies):
        for i, label in enumerate(classes):
            values[i, j] = spread(row[f"dice_{label}"] for row in rows if row["strategy"] == name).mean
    left = 0.15 + _text_width(classes, look, 9)
    names = _text_width(strategies, look, 9)
    room = look.width - left - 0.15
    cell_width = min(room / len(strategies), 0.9)
    upright = max(_text_width([name], look, 9) for name in strategies) > cell_width * 0.95
    top = (names if upright else 0.2) + 0.15
    fig, ax = _figure(
        look,
        height=top + 0.28 * len(classes) + 0.15,
        left=left,
        right=look.width - left - cell_width * len(strategies),
        bottom=0.15,
        top=top,
    )
    highest = np.nanmax(values, initial=0.01)
    ax.imshow(values, aspect="auto", cmap="cividis", vmin=0, vmax=highest)
    size = 9 if cell_width > 0.42 else 6.5 if cell_width > 0.28 else 5.5
    for (i, j), value in np.ndenumerate(values):
        if math.isnan(value):
            ax.text(j, i, "–", ha="center", va="center", fontsize=size, color=look.muted)
        else:
            shade = "#ffffff" if value < 0.55 * highest else "#111111"
            text = f"{value:.2f}".removeprefix("0") if value < 1 else "1.0"
            ax.text(j, i, text, ha="center", va="center", fontsize=size, color=shade)
    ax.set_yticks(range(len(classes)), classes)
    ax.set_xticks(range(len(strategies)), strategies, rotation=90 if upright else 0)
    ax.xaxis.tick_top()
    ax.tick_params(length=0)
    ax.set_xticks(np.arange(1, len(strategies)) - 0.5, minor=True)
    ax.set_yticks(np.arange(1, len(classes)) - 0.5, minor=True)
    ax.grid(which="minor", color=look.paper, linewidth=1.5)
    ax.tick_params(which="minor", length=0)
    ax.set_axisbelow(False)
    ax.spines[:].set_visible(False)
    return fig


def class_shares(dataset: DatasetSummary, look: Look) -> Figure:
    """Share of pixels per class and split on a logarithmic axis, absent classes at its left end (Fig. 3)."""
    splits = {split: np.asarray(shares) * 100 for split, shares in dataset.shares.items()}
    order = np.argsort([max(shares[k] for shares in splits.values()) for k in range(len(dataset.classes))])
    present = np.concatenate([shares[shares > 0] for shares in splits.values()])
    lowest = 10 ** math.floor(math.log10(max(present.min(), 1e-4))) if len(present) else 0.01
    absent = lowest / (5 if look.narrow else 2.5)  # room for its label
    names = [dataset.classes[k] for k in order]
    fig, ax = _figure(
        look,
        height=1.25 + 0.27 * len(names),
        left=0.4 + _text_width(names, look, 9),
        right=0.25,
        bottom=0.55,
        top=0.4,
    )
    markers = {"train": ("o", "#0072b2"), "validation": ("D", "#e69f00"), "test": ("^", "#d55e00")}
    for y, k in enumerate(order):
        points = [max(shares[k], absent) for shares in splits.values()]
        ax.plot([min(points), max(points)], [y, y], color=look.grid, linewidth=3, zorder=1)
        for (split, shares), x in zip(splits.items(), points, strict=True):
            marker, colour = markers[split]
            face = colour if shares[k] > 0 else look.paper
            ax.plot(x, y, marker, color=colour, markerfacecolor=face, markersize=6.5, zorder=2)
        chip = tuple(channel / 255 for channel in dataset.palette[k])
        ax.plot(
            -0.13 / (look.width - 0.65 - _text_width(names, look, 9)),
            y,
            "s",
            color=chip,
            markeredgecolor=look.muted,
            markeredgewidth=0.6,
            markersize=7,
            transform=ax.get_yaxis_transform(),
            clip_on=False,
        )
    ax.set_xscale("log")
    ax.set_xlim(absent / 1.5, 100)
    ticks = [10.0**e for e in range(round(math.log10(lowest)), 3)]
    ax.set_xticks([absent, *ticks], ["none", *(f"{tick:g}" for tick in ticks)])
    ax.minorticks_off()
    ax.set_yticks(range(len(names)), names, fontsize=9)
    ax.tick_params(axis="y", length=0, pad=16)
    ax.set_ylim(-0.7, len(names) - 0.3)
    ax.grid(axis="x")
    ax.set_xlabel("share of the split's pixels (%)")
    handles = [
        Line2D([], [], marker=markers[split][0], color=markers[split][1], linestyle="", markersize=6.5, label=split)
        for split in splits
    ]
    fig.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=(0.1 / look.width, 1 - 0.05 / fig.get_figheight()),
        ncols=len(handles),
        frameon=False,
        handletextpad=0.2,
        columnspacing=1.2,
        borderaxespad=0,
    )
    return fig


def round_seconds(rows: Sequence[Row], strategies: Sequence[str], look: Look) -> Figure:
    """Mean seconds by strategy: of a round that chooses, and of embedding and seeding alone, which training dwarfs."""
    parts_of = {}
    for name in strategies:
        own = [row for row in rows if row["strategy"] == name]
        training, evaluation = (spread(row[f"{part}_seconds"] for row in own) for part in ("train", "eval"))
        embedding, seeding = choosing_seconds(own)
        parts_of[name] = (training.mean, embedding.mean, seeding.mean, evaluation.mean)
    means = dict(zip(PART_COLOURS, np.nan_to_num(np.array(list(parts_of.values()))).T, strict=True))
    chosen = {part: means[part] for part in ("embedding", "seeding")}
    label = _text_width(strategies, look, 9) + 0.2
    panel = 0.5 + 0.27 * len(strategies)
    height = (2 * panel + 1.1) if look.narrow else panel + 0.6
    fig = Figure(figsize=(look.width, height))
    FigureCanvasAgg(fig)
    if look.narrow:
        width = look.width - label - 0.55
        boxes = [(label, panel + 0.8, width), (label, 0.5, width)]
    else:
        width = (look.width - label - 1.3) / 2
        boxes = [(label, 0.5, width), (label + width + 0.7, 0.5, width)]
    titles = ("whole round", "choosing the images only")
    for (left, bottom, w), parts, title in zip(boxes, (means, chosen), titles, strict=True):
        ax = fig.add_axes((left / look.width, bottom / height, w / look.width, (panel - 0.25) / height))
        longest = max(np.sum(list(parts.values()), axis=0))
        unit, scale = ("min", 60.0) if longest > 180 else ("s", 1.0) if longest > 0.5 else ("ms", 1e-3)
        start: npt.NDArray[np.float64] = np.zeros(len(strategies))
        for part, values in parts.items():
            ax.barh(range(len(strategies)), values / scale, left=start, height=0.66, color=PART_COLOURS[part])
            start = start + values / scale
        for y, end in enumerate(start):
            text = f"{end:.3g} {unit}" if end else "0"
            ax.annotate(text, (end, y), (4, 0), textcoords="offset points", va="center", fontsize=8.5)
        ax.set_yticks(range(len(strategies)), strategies if look.narrow or parts is means else [""] * len(strategies))
        ax.tick_params(axis="y", length=0)
        ax.set_ylim(len(strategies) - 0.4, -0.6)
        ax.set_xlim(0, (start.max() or 1) * 1.02)
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.set_xlabel(f"{title} ({unit})", loc="left")
    handles = [Patch(color=colour, label=part) for part, colour in PART_COLOURS.items()]
    fig.legend(
        handles=handles,
        loc="upper left",
        bbox_to_anchor=((label - 0.08) / look.width, 1 - 0.02 / height),
        ncols=2 if look.narrow else 4,
        frameon=False,
        handlelength=1,
        handleheight=0.8,
        borderaxespad=0,
        columnspacing=1.4,
    )
    return fig


def frame_maps(frames: FrameMaps, dataset: DatasetSummary | None, look: Look) -> Figure:
    """Image, truth, prediction and norm map of a few test frames, side by side (Fig. 2d)."""
    shown = min(len(frames.ids), FRAMES_SHOWN)
    rows, columns = frames.masks.shape[1:]
    gap, top, name_height = 0.06, 0.3, 0.2
    cell = (look.width - 0.2 - 3 * gap) / 4
    tall = cell * rows / columns
    palette = _palette(dataset, frames)
    present = [k for k in np.unique([frames.masks[:shown], frames.predictions[:shown]]) if k != UNLABELLED]
    names = [dataset.classes[k] if dataset else f"class {k}" for k in present]
    handles = [
        Patch(facecolor=palette[k] / 255, edgecolor=look.muted, linewidth=0.6, label=name)
        for k, name in zip(present, names, strict=True)
    ]
    if (frames.masks[:shown] == UNLABELLED).any():
        handles.append(
            Patch(facecolor=palette[UNLABELLED] / 255, edgecolor=look.muted, linewidth=0.6, label="not labelled")
        )
    per_line = max(1, int((look.width - 0.2) / (0.45 + _text_width(names, look, 8.5))))
    legend = 0.1 + 0.19 * math.ceil(len(handles) / per_line)
    height = top + shown * (tall + name_height) + 0.35 + legend
    fig = Figure(figsize=(look.width, height))
    FigureCanvasAgg(fig)
    norms = frames.norm_maps[:shown].astype(np.float32)
    finite = norms[np.isfinite(norms)]
    largest = max(float(np.quantile(finite, 0.995)) if finite.size else 0.0, 1e-6)
    colours = matplotlib.colormaps["inferno"]
    for i in range(shown):
        bottom = height - top - (i + 1) * (tall + name_height) + name_height
        heat = colours(norms[i] / largest, bytes=True)[..., :3]
        pictures = (frames.images[i].transpose(1, 2, 0), palette[frames.masks[i]], palette[frames.predictions[i]], heat)
        # One set of axes for all four: each costs more time than its picture.
        ax = fig.add_axes((0.1 / look.width, bottom / height, 1 - 0.2 / look.width, tall / height))
        ax.set_axis_off()
        ax.set_xlim(0, look.width - 0.2)
        ax.set_ylim(0, tall)
        for j, picture in enumerate(pictures):
            left = j * (cell + gap)
            ax.imshow(picture, extent=(left, left + cell, 0, tall), interpolation="nearest", aspect="auto")
            if i == 0:
                title = ("image", "truth", "prediction", "gradient norm")[j]
                ax.text(left + cell / 2, tall + 0.07, title, ha="center", fontsize=9.5)
        fig.text(0.1 / look.width, (bottom - 0.05) / height, frames.ids[i], fontsize=7, color=look.muted, va="top")
    left = 0.1 + 3 * (cell + gap)
    bar = fig.add_axes((left / look.width, (legend + 0.22) / height, cell / look.width, 0.08 / height))
    scale = ScalarMappable(Normalize(0, largest), colours)
    fig.colorbar(scale, cax=bar, orientation="horizontal", ticks=[0, largest])
    lowest, highest = bar.set_xticklabels(["0", f"{largest:.2g}"], fontsize=8)
    lowest.set_horizontalalignment("left")
    highest.set_horizontalalignment("right")
    bar.tick_params(length=0, pad=2)
    fig.legend(
        handles=handles,
        loc="lower left",
        bbox_to_anchor=(0.1 / look.width, 0.05 / height),
        ncols=per_line,
        frameon=False,
        fontsize=8.5,
        handlelength=1,
        handleheight=1,
        borderaxespad=0,
        columnspacing=1.2,
    )
    return fig


def contact_sheet(
    picks: Sequence[PickRecord],
    thumbnails: Mapping[str, npt.NDArray[np.uint8]],
    look: Look,
    *,
    size: int | None = None,
) -> Figure:
    """What one strategy picked with one seed: a line per round, in order of picking; windows framed in their frame.

    Args:
        size: side of the frames that windows are counted in; without it they are not drawn.
    """
    chosen = [picks[i] for i in _evenly(len(picks), ROUNDS_SHOWN)]
    columns = min(max(len(record.ids) for record in chosen), PICKS_SHOWN)
    label = 0.75
    cell = min((look.width - label - 0.1) / columns, 0.72)
    gap = 4
    step = THUMBNAIL + gap
    blank = [round(255 * channel) for channel in to_rgb(look.grid)]
    canvas = np.empty((len(chosen) * step - gap, columns * step - gap, 3), np.uint8)
    canvas[:] = [round(255 * channel) for channel in to_rgb(look.paper)]
    for i, record in enumerate(chosen):
        for j, piece in enumerate(map(named, record.ids[:columns])):
            name = str(piece.id) if isinstance(piece, Window) else piece
            tile = canvas[i * step : i * step + THUMBNAIL, j * step : j * step + THUMBNAIL]
            tile[:] = thumbnails[name].transpose(1, 2, 0) if name in thumbnails else blank
            if isinstance(piece, Window) and size:
                _frame_window(tile, piece, size)
    height = len(chosen) * cell + 0.1
    fig = Figure(figsize=(label + columns * cell + 0.1, height))
    FigureCanvasAgg(fig)
    width = fig.get_figwidth()
    ax = fig.add_axes((label / width, 0.05 / height, columns * cell / width, len(chosen) * cell / height))
    ax.imshow(canvas, aspect="auto", interpolation="bilinear")
    ax.set_yticks([i * step + THUMBNAIL / 2 for i in range(len(chosen))], [f"round {r.round}" for r in chosen])
    ax.set_xticks([])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return fig


def _title(ax: Axes, text: str, look: Look) -> None:
    """Above the axes, from the axes' left end or, where the paper is narrow, from the paper's."""
    at = ("figure fraction" if look.narrow else "axes fraction", "axes fraction")
    ax.annotate(text, (0.02 if look.narrow else 0, 1), (0, 8), at, "offset points", fontsize=10)


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


def _frame_window(tile: npt.NDArray[np.uint8], window: Window, size: int) -> None:
    """Darken what lies outside the window and draw its edge."""
    left, right = (window.x * THUMBNAIL // size, -(-(window.x + window.width) * THUMBNAIL // size) - 1)
    top, bottom = (window.y * THUMBNAIL // size, -(-(window.y + window.height) * THUMBNAIL // size) - 1)
    inside = tile[top : bottom + 1, left : right + 1].copy()
    tile[:] = tile // 2
    tile[top : bottom + 1, left : right + 1] = inside
    for rows, columns in (
        (top, slice(left, right + 1)),
        (bottom, slice(left, right + 1)),
        (slice(top, bottom + 1), left),
        (slice(top, bottom + 1), right),
    ):
        tile[rows, columns] = (255, 200, 0)


def _one_training(rows: Sequence[Row], full: Sequence[Row], styles: Styles, look: Look) -> Figure:
    by_strategy: dict[str, list[float]] = {}
    for row in rows:
        by_strategy.setdefault(row["strategy"], []).append(row["dice"])
    names = list(by_strategy)
    fig, ax = _figure(
        look,
        height=1.1 + 0.32 * len(names),
        left=0.2 + _text_width(names, look),
        right=0.75,
        bottom=0.55,
        top=0.35,
    )
    for y, (name, values) in enumerate(by_strategy.items()):
        found, style = spread(values), styles[name]
        ax.plot(values, [y] * len(values), "o", color=style.colour, alpha=0.4, markersize=4)
        ax.plot([found.low, found.high], [y, y], color=style.colour, linewidth=2)
        ax.plot(found.mean, y, style.marker, color=style.colour, markersize=7)
        ax.annotate(
            f"{found.mean:.3f}", (1, y), (6, 0), ("axes fraction", "data"), "offset points", va="center", fontsize=9
        )
    ax.set_xlim(_dice_limits([*rows, *full]))
    if full:
        level = spread(row["dice"] for row in full).mean
        ax.axvline(level, color=look.ink, linewidth=1.2, linestyle=styles["full"].dash)
        ax.annotate(
            f"full {level:.3f}", (level, 1), (0, 4), ("data", "axes fraction"), "offset points", ha="center", fontsize=9
        )
    ax.set_yticks(range(len(names)), names)
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.grid(axis="x")
    ax.set_xlabel(f"test Dice with {rows[0]['n_labelled']} labelled images")
    return fig


def _figure(look: Look, *, height: float, left: float, right: float, bottom: float, top: float) -> tuple[Figure, Axes]:
    fig = Figure(figsize=(look.width, height))
    FigureCanvasAgg(fig)
    box = (left / look.width, bottom / height, 1 - (left + right) / look.width, 1 - (bottom + top) / height)
    return fig, fig.add_axes(box)


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


def _full_and_limits(rows: Sequence[Row], full: Sequence[Row]) -> tuple[float, tuple[float, float]]:
    """Mean Dice of `full` (NaN without it), and limits that show the curves, and `full` unless it is far from them."""
    level = spread(row["dice"] for row in full).mean
    low, high = _dice_limits(rows)
    near = full and level - high < FULL_NEAR * (high - low)
    return level, _dice_limits([*rows, *full]) if near else (low, high)


def _label_ends(fig: Figure, ax: Axes, ends: Mapping[str, tuple[float, float]], styles: Styles, look: Look) -> None:
    """Write each line's name right of the axes, about level with its end (x, y), joined to it by a leader."""
    size = 8.0 if look.narrow else 9.0
    texts = [name if look.narrow else f"{name} {y:.3f}" for name, (_, y) in ends.items()]
    leader = 0.3
    box = ax.get_position()
    width = box.width - (leader + 0.05 + _text_width(texts, look, size)) / look.width
    ax.set_position((box.x0, box.y0, width, box.height))
    width_inches, height_inches = width * look.width, box.height * fig.get_figheight()
    to_axes = (ax.transData - ax.transAxes).transform
    starts = [to_axes(point) for point in ends.values()]
    placed = spaced([y for _, y in starts], size / 72 * 1.35 / height_inches, 0.0, 1.0)
    for name, text, (x, y), level in zip(ends, texts, starts, placed, strict=True):
        style, beyond = styles[name], 1 + leader / width_inches
        ax.plot(
            [max(x, 1.0), beyond] if name == "full" else [x, beyond],
            [y, level],
            color=look.ink if name == "full" else style.colour,
            linestyle=style.dash,
            linewidth=1 if x > 0.9 else 0.6,  # a curve that ends early goes on in a line that is not one
            alpha=1 if x > 0.9 else 0.5,
            transform=ax.transAxes,
            clip_on=False,
        )
        ax.text(beyond + 0.05 / width_inches, level, text, va="center", fontsize=size, transform=ax.transAxes)


def _palette(dataset: DatasetSummary | None, frames: FrameMaps) -> npt.NDArray[np.uint8]:
    """(256, 3) colour of every class id; pixels that are not labelled are light grey."""
    palette = np.full((256, 3), 214, np.uint8)
    if dataset:
        palette[: len(dataset.palette)] = dataset.palette
    else:
        known = int(max(frames.predictions.max(initial=0), frames.masks[frames.masks != UNLABELLED].max(initial=0))) + 1
        palette[:known] = matplotlib.colormaps["tab20"](np.arange(known) % 20, bytes=True)[:, :3]
    return palette


def _evenly(n: int, at_most: int) -> list[int]:
    """At most so many of range(n), evenly spread, with the first and the last."""
    return sorted({round(i) for i in np.linspace(0, n - 1, min(n, at_most))})


def _text_width(texts: Sequence[str], look: Look, size: float = 9) -> float:
    """Inches that the widest of the texts takes."""
    canvas = FigureCanvasAgg(Figure(dpi=100))
    text = canvas.figure.text(0, 0, "", fontsize=size)
    widest = 0.0
    for content in texts:
        text.set_text(content)
        widest = max(widest, text.get_window_extent(canvas.get_renderer()).width / 100)
    return widest
