"""Empty figures, laid out in inches: each is drawn anew for a narrow screen instead of being shrunk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
    FigureCanvasAgg(fig)
    box = (left / theme.width, bottom / height, 1 - (left + right) / theme.width, 1 - (bottom + top) / height)
    return fig, fig.add_axes(box)


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
