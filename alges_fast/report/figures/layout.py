"""Empty figures, laid out in inches: each is drawn anew for a narrow screen instead of being shrunk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from alges_fast.report.style import StrategyStyle, Theme

Styles = Mapping[str, StrategyStyle]
"""A style by strategy."""


def new_figure(
    theme: Theme, *, height: float, left: float, right: float, bottom: float, top: float
) -> tuple[Figure, Axes]:
    """A figure of the theme's width, with axes inside these margins, all in inches."""
    fig = Figure(figsize=(theme.width, height))
    box = (left / theme.width, bottom / height, 1 - (left + right) / theme.width, 1 - (bottom + top) / height)
    return fig, fig.add_axes(box)


def new_rows(
    theme: Theme,
    names: Sequence[str],
    notes: Sequence[str] = (),
    *,
    top: float,
    bottom: float,
    left: float = 0.2,
    right: float = 0.25,
) -> tuple[Figure, Axes]:
    """A figure with a row for each name, from below to above, and its note right of it; margins, in inches, are beside
    what names and notes take."""
    fig, ax = new_figure(
        theme,
        height=top + bottom + 0.2 + 0.32 * len(names),
        left=left + text_width(names),
        right=right + text_width(notes),
        bottom=bottom,
        top=top,
    )
    for y, note in enumerate(notes):
        ax.annotate(note, (1, y), (8, 0), ("axes fraction", "data"), "offset points", va="center", fontsize=9)
    ax.set_yticks(range(len(names)), names)
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(-0.7, len(names) - 0.3)
    return fig, ax


def add_legend(fig: Figure, handles: Sequence[Artist], *, left: float, columns: int, below: bool = False) -> None:
    """At the figure's top, or its bottom, from so many inches on."""
    height = fig.get_figheight()
    fig.legend(
        handles=handles,
        loc="lower left" if below else "upper left",
        bbox_to_anchor=(left / fig.get_figwidth(), (0.05 if below else height - 0.05) / height),
        ncols=columns,
        frameon=False,
        fontsize=8.5,
        handlelength=1,
        handleheight=1,
        borderaxespad=0,
        columnspacing=1.2,
    )


def write_title(ax: Axes, text: str, theme: Theme) -> None:
    """Above the axes, from the axes' left end or, where the paper is narrow, from the paper's."""
    at = ("figure fraction" if theme.narrow else "axes fraction", "axes fraction")
    ax.annotate(text, (0.02 if theme.narrow else 0, 1), (0, 8), at, "offset points", fontsize=10)


def text_width(texts: Sequence[str], size: float = 9) -> float:
    """Inches that the widest of the texts takes."""
    canvas = FigureCanvasAgg(Figure(dpi=100))
    text = canvas.figure.text(0, 0, "", fontsize=size)
    widest = 0.0
    for content in texts:
        text.set_text(content)
        widest = max(widest, text.get_window_extent(canvas.get_renderer()).width / 100)
    return widest
