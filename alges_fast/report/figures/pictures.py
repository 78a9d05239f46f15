"""Frames of the data: what a model sees in them, and which ones were picked."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from alges_fast.labels import UNLABELLED
from alges_fast.report.artefacts import THUMBNAIL, DatasetSummary, FrameMaps, PickRecord
from alges_fast.report.figures.layout import add_legend, text_width
from alges_fast.report.style import Theme
from alges_fast.windows import Window, named

PICKS_SHOWN = 10
ROUNDS_SHOWN = 8
FRAMES_SHOWN = 4


def frame_maps(frames: FrameMaps, dataset: DatasetSummary | None, theme: Theme) -> Figure:
    """Image, truth, prediction and norm map of a few test frames, side by side (Fig. 2d)."""
    shown = min(len(frames.ids), FRAMES_SHOWN)
    rows, columns = frames.masks.shape[1:]
    gap, top, name_height = 0.06, 0.3, 0.2
    cell = (theme.width - 0.2 - 3 * gap) / 4
    tall = cell * rows / columns
    palette = _palette(dataset, frames)
    present = [k for k in np.unique([frames.masks[:shown], frames.predictions[:shown]]) if k != UNLABELLED]
    names = [dataset.classes[k] if dataset else f"class {k}" for k in present]
    if (frames.masks[:shown] == UNLABELLED).any():
        present, names = [*present, UNLABELLED], [*names, "not labelled"]
    handles = [
        Patch(facecolor=palette[k] / 255, edgecolor=theme.muted, linewidth=0.6, label=name)
        for k, name in zip(present, names, strict=True)
    ]
    per_line = max(1, int((theme.width - 0.2) / (0.45 + text_width(names, 8.5))))
    legend = 0.1 + 0.19 * math.ceil(len(handles) / per_line)
    height = top + shown * (tall + name_height) + 0.35 + legend
    fig = Figure(figsize=(theme.width, height))
    norms = frames.norm_maps[:shown].astype(np.float32)
    finite = norms[np.isfinite(norms)]
    largest = max(float(np.quantile(finite, 0.995)) if finite.size else 0.0, 1e-6)
    colours = matplotlib.colormaps["inferno"]
    for i in range(shown):
        bottom = height - top - (i + 1) * (tall + name_height) + name_height
        heat = colours(norms[i] / largest, bytes=True)[..., :3]
        pictures = (frames.images[i].transpose(1, 2, 0), palette[frames.masks[i]], palette[frames.predictions[i]], heat)
        # One set of axes for all four: each costs more time than its picture.
        ax = fig.add_axes((0.1 / theme.width, bottom / height, 1 - 0.2 / theme.width, tall / height))
        ax.set_axis_off()
        ax.set_xlim(0, theme.width - 0.2)
        ax.set_ylim(0, tall)
        for j, picture in enumerate(pictures):
            left = j * (cell + gap)
            ax.imshow(picture, extent=(left, left + cell, 0, tall), interpolation="nearest", aspect="auto")
            if i == 0:
                title = ("image", "truth", "prediction", "gradient norm")[j]
                ax.text(left + cell / 2, tall + 0.07, title, ha="center", fontsize=9.5)
        fig.text(0.1 / theme.width, (bottom - 0.05) / height, frames.ids[i], fontsize=7, color=theme.muted, va="top")
    left = 0.1 + 3 * (cell + gap)
    bar = fig.add_axes((left / theme.width, (legend + 0.22) / height, cell / theme.width, 0.08 / height))
    scale = ScalarMappable(Normalize(0, largest), colours)
    fig.colorbar(scale, cax=bar, orientation="horizontal", ticks=[0, largest])
    lowest, highest = bar.set_xticklabels(["0", f"{largest:.2g}"], fontsize=8)
    lowest.set_horizontalalignment("left")
    highest.set_horizontalalignment("right")
    bar.tick_params(length=0, pad=2)
    add_legend(fig, handles, left=0.1, columns=per_line, below=True)
    return fig


def contact_sheet(
    picks: Sequence[PickRecord],
    thumbnails: Mapping[str, npt.NDArray[np.uint8]],
    theme: Theme,
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
    cell = min((theme.width - label - 0.1) / columns, 0.72)
    gap = 4
    step = THUMBNAIL + gap
    blank = [round(255 * channel) for channel in to_rgb(theme.grid)]
    canvas = np.empty((len(chosen) * step - gap, columns * step - gap, 3), np.uint8)
    canvas[:] = [round(255 * channel) for channel in to_rgb(theme.paper)]
    for i, record in enumerate(chosen):
        for j, piece in enumerate(map(named, record.ids[:columns])):
            name = str(piece.id) if isinstance(piece, Window) else piece
            tile = canvas[i * step : i * step + THUMBNAIL, j * step : j * step + THUMBNAIL]
            tile[:] = thumbnails[name].transpose(1, 2, 0) if name in thumbnails else blank
            if isinstance(piece, Window) and size:
                _frame_window(tile, piece, size)
    height = len(chosen) * cell + 0.1
    fig = Figure(figsize=(label + columns * cell + 0.1, height))
    width = fig.get_figwidth()
    ax = fig.add_axes((label / width, 0.05 / height, columns * cell / width, len(chosen) * cell / height))
    ax.imshow(canvas, aspect="auto", interpolation="bilinear")
    ax.set_yticks([i * step + THUMBNAIL / 2 for i in range(len(chosen))], [f"round {r.round}" for r in chosen])
    ax.set_xticks([])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return fig


def _frame_window(tile: npt.NDArray[np.uint8], window: Window, size: int) -> None:
    """Darken what lies outside the window and draw its edge."""
    left, right = (window.x * THUMBNAIL // size, -(-(window.x + window.width) * THUMBNAIL // size) - 1)
    top, bottom = (window.y * THUMBNAIL // size, -(-(window.y + window.height) * THUMBNAIL // size) - 1)
    inside = tile[top : bottom + 1, left : right + 1].copy()
    tile[:] = tile // 2
    tile[top : bottom + 1, left : right + 1] = inside
    tile[[top, bottom], left : right + 1] = tile[top : bottom + 1, [left, right]] = (255, 200, 0)


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
