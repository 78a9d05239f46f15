"""How figures look: one colour, dash and marker per strategy everywhere, in light and dark, wide and narrow.

Colours are Okabe and Ito's, which colour-blind readers can tell apart. They are fewer than the strategies, so relatives
share a hue (uncertainty blue, image-level red, semantic-level orange) and differ in dash and marker.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

Dash = str | tuple[float, tuple[float, ...]]

_DASHED: Dash = (0, (5, 1.8))
_DOTTED: Dash = (0, (1.2, 1.4))


@dataclass(frozen=True)
class StrategyStyle:
    """How a strategy is drawn in every figure."""

    colour: str
    dash: Dash
    marker: str


@dataclass(frozen=True)
class Look:
    """Theme and size of a figure; `width` is in inches, `dpi` in pixels per inch."""

    paper: str
    ink: str
    muted: str
    grid: str
    width: float = 8.0
    dpi: int = 160

    @property
    def narrow(self) -> bool:
        return self.width < 6

    def settings(self) -> dict[Any, Any]:
        """The matplotlib settings for this look."""
        return {
            "figure.facecolor": self.paper,
            "figure.dpi": self.dpi,
            "savefig.facecolor": self.paper,
            "axes.facecolor": self.paper,
            "axes.edgecolor": self.muted,
            "axes.labelcolor": self.ink,
            "axes.titlecolor": self.ink,
            "axes.titlesize": 10,
            "axes.labelsize": 10,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.linewidth": 0.8,
            "axes.axisbelow": True,
            "grid.color": self.grid,
            "grid.linewidth": 0.8,
            "text.color": self.ink,
            "xtick.color": self.muted,
            "ytick.color": self.muted,
            "xtick.labelcolor": self.ink,
            "ytick.labelcolor": self.ink,
            "xtick.labelsize": 9,
            "ytick.labelsize": 9,
            "font.size": 10,
            "lines.solid_capstyle": "round",
        }


LIGHT = Look(paper="#ffffff", ink="#1c2126", muted="#68717a", grid="#e4e8eb")
DARK = Look(paper="#171b1f", ink="#e6e9ec", muted="#98a2ab", grid="#30373d")
NARROW = 4.4

_KNOWN = {
    "random": StrategyStyle("#808080", "-", "o"),
    "stratified-random": StrategyStyle("#808080", _DASHED, "s"),
    "entropy": StrategyStyle("#0072b2", "-", "o"),
    "margin": StrategyStyle("#56b4e9", "-", "^"),
    "least-confidence": StrategyStyle("#0072b2", _DOTTED, "s"),
    "coreset": StrategyStyle("#009e73", "-", "o"),
    "deal": StrategyStyle("#cc79a7", "-", "o"),
    "deal-score": StrategyStyle("#cc79a7", _DASHED, "s"),
    "alges-img": StrategyStyle("#d55e00", "-", "o"),
    "alges-sem": StrategyStyle("#e69f00", "-", "o"),
    "alges-sem-vector": StrategyStyle("#e69f00", _DASHED, "^"),
    "alges-img-released": StrategyStyle("#d55e00", _DOTTED, "s"),
    "alges-sem-released": StrategyStyle("#e69f00", _DOTTED, "s"),
    "full": StrategyStyle("#808080", _DASHED, "D"),
}
_OTHERS = ("#9467bd", "#8c6d31", "#17a2a8", "#b0486b")

PART_COLOURS = {"training": "#7b8fa3", "embedding": "#d55e00", "seeding": "#e69f00", "evaluation": "#b9c3cc"}


def in_order(names: Iterable[str]) -> list[str]:
    """Names without repetition: the product's strategies in their usual order, then a user's own as they come."""
    names = list(dict.fromkeys(names))
    return [name for name in _KNOWN if name in names] + [name for name in names if name not in _KNOWN]


def strategy_styles(names: Iterable[str]) -> dict[str, StrategyStyle]:
    """A style for every name, in the order of `in_order`. A user's own strategies take the spare hues in turn."""
    styles: dict[str, StrategyStyle] = {}
    own = 0
    for name in in_order(names):
        if name in _KNOWN:
            styles[name] = _KNOWN[name]
        else:
            dash: Dash = "-" if own < len(_OTHERS) else _DASHED
            styles[name] = StrategyStyle(_OTHERS[own % len(_OTHERS)], dash, "v")
            own += 1
    return styles
