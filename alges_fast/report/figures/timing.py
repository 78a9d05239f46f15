"""Where the time of a round goes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from alges_fast.report.figures.layout import add_legend, text_width
from alges_fast.report.statistics import Row, choosing_seconds, spread
from alges_fast.report.style import PART_COLOURS, Theme


def round_seconds(rows: Sequence[Row], strategies: Sequence[str], theme: Theme) -> Figure:
    """Mean seconds by strategy: of a round that chooses, and of embedding and seeding alone, which training dwarfs."""
    parts_of = {}
    for name in strategies:
        own = [row for row in rows if row["strategy"] == name]
        training, evaluation = (spread(row[f"{part}_seconds"] for row in own) for part in ("train", "eval"))
        embedding, seeding = choosing_seconds(own)
        parts_of[name] = (training.mean, embedding.mean, seeding.mean, evaluation.mean)
    means = dict(zip(PART_COLOURS, np.nan_to_num(np.array(list(parts_of.values()))).T, strict=True))
    chosen = {part: means[part] for part in ("embedding", "seeding")}
    label = text_width(strategies, 9) + 0.2
    panel = 0.5 + 0.27 * len(strategies)
    height = (2 * panel + 1.1) if theme.narrow else panel + 0.6
    fig = Figure(figsize=(theme.width, height))
    if theme.narrow:
        width = theme.width - label - 0.55
        boxes = [(label, panel + 0.8, width), (label, 0.5, width)]
    else:
        width = (theme.width - label - 1.3) / 2
        boxes = [(label, 0.5, width), (label + width + 0.7, 0.5, width)]
    titles = ("whole round", "choosing the images only")
    for (left, bottom, w), parts, title in zip(boxes, (means, chosen), titles, strict=True):
        ax = fig.add_axes((left / theme.width, bottom / height, w / theme.width, (panel - 0.25) / height))
        longest = max(np.sum(list(parts.values()), axis=0))
        unit, scale = ("min", 60.0) if longest > 180 else ("s", 1.0) if longest > 0.5 else ("ms", 1e-3)
        start: npt.NDArray[np.float64] = np.zeros(len(strategies))
        for part, values in parts.items():
            ax.barh(range(len(strategies)), values / scale, left=start, height=0.66, color=PART_COLOURS[part])
            start = start + values / scale
        for y, end in enumerate(start):
            text = f"{end:.3g} {unit}" if end else "0"
            ax.annotate(text, (end, y), (4, 0), textcoords="offset points", va="center", fontsize=8.5)
        ax.set_yticks(range(len(strategies)), strategies if theme.narrow or parts is means else [""] * len(strategies))
        ax.tick_params(axis="y", length=0)
        ax.set_ylim(len(strategies) - 0.4, -0.6)
        ax.set_xlim(0, (start.max() or 1) * 1.02)
        ax.xaxis.set_major_locator(MaxNLocator(4))
        ax.set_xlabel(f"{title} ({unit})", loc="left")
    handles = [Patch(color=colour, label=part) for part, colour in PART_COLOURS.items()]
    add_legend(fig, handles, left=label - 0.08, columns=2 if theme.narrow else 4)
    return fig
