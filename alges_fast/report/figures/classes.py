"""Classes: the Dice that strategies reach on each, and how much of the data each is."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from alges_fast.report.artefacts import DatasetSummary
from alges_fast.report.figures.layout import add_legend, new_figure, new_rows, text_width
from alges_fast.report.statistics import Row, spread
from alges_fast.report.style import Theme


def class_dice(rows: Sequence[Row], classes: Sequence[str], strategies: Sequence[str], theme: Theme) -> Figure:
    """Mean Dice per class (row) and strategy (column) over the given rows; a dash where the truth has no such class."""
    values = np.full((len(classes), len(strategies)), np.nan)
    for j, name in enumerate(strategies):
        for i, label in enumerate(classes):
            values[i, j] = spread(row[f"dice_{label}"] for row in rows if row["strategy"] == name).mean
    left = 0.15 + text_width(classes, 9)
    names = text_width(strategies, 9)
    room = theme.width - left - 0.15
    cell_width = min(room / len(strategies), 0.9)
    upright = max(text_width([name], 9) for name in strategies) > cell_width * 0.95
    top = (names if upright else 0.2) + 0.15
    fig, ax = new_figure(
        theme,
        height=top + 0.28 * len(classes) + 0.15,
        left=left,
        right=theme.width - left - cell_width * len(strategies),
        bottom=0.15,
        top=top,
    )
    highest = np.nanmax(values, initial=0.01)
    ax.imshow(values, aspect="auto", cmap="cividis", vmin=0, vmax=highest)
    size = 9 if cell_width > 0.42 else 6.5 if cell_width > 0.28 else 5.5
    for (i, j), value in np.ndenumerate(values):
        if math.isnan(value):
            ax.text(j, i, "–", ha="center", va="center", fontsize=size, color=theme.muted)
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
    ax.grid(which="minor", color=theme.paper, linewidth=1.5)
    ax.tick_params(which="minor", length=0)
    ax.set_axisbelow(False)
    ax.spines[:].set_visible(False)
    return fig


def class_shares(dataset: DatasetSummary, theme: Theme) -> Figure:
    """Share of pixels per class and split on a logarithmic axis, absent classes at its left end (Fig. 3)."""
    splits = {split: np.asarray(shares) * 100 for split, shares in dataset.shares.items()}
    order = np.argsort([max(shares[k] for shares in splits.values()) for k in range(len(dataset.classes))])
    present = np.concatenate([shares[shares > 0] for shares in splits.values()])
    lowest = 10 ** math.floor(math.log10(max(present.min(), 1e-4))) if len(present) else 0.01
    absent = lowest / (5 if theme.narrow else 2.5)  # room for its label
    names = [dataset.classes[k] for k in order]
    fig, ax = new_rows(theme, names, top=0.4, bottom=0.55, left=0.4)
    markers = {"train": ("o", "#0072b2"), "validation": ("D", "#e69f00"), "test": ("^", "#d55e00")}
    for y, k in enumerate(order):
        points = [max(shares[k], absent) for shares in splits.values()]
        ax.plot([min(points), max(points)], [y, y], color=theme.grid, linewidth=3, zorder=1)
        for (split, shares), x in zip(splits.items(), points, strict=True):
            marker, colour = markers[split]
            face = colour if shares[k] > 0 else theme.paper
            ax.plot(x, y, marker, color=colour, markerfacecolor=face, markersize=6.5, zorder=2)
        chip = tuple(channel / 255 for channel in dataset.palette[k])
        ax.plot(
            -0.13 / (theme.width - 0.65 - text_width(names, 9)),
            y,
            "s",
            color=chip,
            markeredgecolor=theme.muted,
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
    ax.tick_params(axis="y", pad=16)
    ax.grid(axis="x")
    ax.set_xlabel("share of the split's pixels (%)")
    handles = [
        Line2D([], [], marker=markers[split][0], color=markers[split][1], linestyle="", markersize=6.5, label=split)
        for split in splits
    ]
    add_legend(fig, handles, left=0.1, columns=len(handles))
    return fig
