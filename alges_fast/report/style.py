"""How figures look: one colour, dash and marker per strategy everywhere, in light and dark, wide and narrow.

Colours are Okabe and Ito's, which colour-blind readers can tell apart. They are fewer than the strategies, so relatives
share a hue (uncertainty blue, image-level red, semantic-level orange) and differ in dash and marker. Where windows were
chosen, the dash says how large (whole frames dotted, the finest grid solid) and relatives differ in marker alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

Dash = str | tuple[float, tuple[float, ...]]

_DASHED: Dash = (0, (5, 1.8))
_DOTTED: Dash = (0, (1.2, 1.4))
_MIXED: Dash = (0, (5, 1.4, 1.2, 1.4))


@dataclass(frozen=True)
class StrategyStyle:
    """How a strategy is drawn in every figure."""

    colour: str
    dash: Dash
    marker: str


@dataclass(frozen=True)
class Theme:
    """Colours and size of a figure; `width` is in inches, `dpi` in pixels per inch."""

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
        """The matplotlib settings for this theme."""
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


LIGHT = Theme(paper="#ffffff", ink="#1c2126", muted="#68717a", grid="#e4e8eb")
DARK = Theme(paper="#171b1f", ink="#e6e9ec", muted="#98a2ab", grid="#30373d")
NARROW = 4.4

_KNOWN = {
    "random": StrategyStyle("#808080", "-", "o"),
    "stratified-random": StrategyStyle("#808080", _DASHED, "s"),
    "entropy": StrategyStyle("#0072b2", "-", "o"),
    "margin": StrategyStyle("#56b4e9", "-", "^"),
    "least-confidence": StrategyStyle("#0072b2", _DOTTED, "s"),
    "power-entropy": StrategyStyle("#0072b2", _DASHED, "D"),
    "claspe": StrategyStyle("#56b4e9", _DASHED, "P"),
    "balanced-entropy": StrategyStyle("#56b4e9", _DOTTED, "o"),
    "foreground-random": StrategyStyle("#808080", _DOTTED, "^"),
    "strided": StrategyStyle("#808080", _MIXED, "v"),
    "typical": StrategyStyle("#009e73", _MIXED, "s"),
    "herding": StrategyStyle("#009e73", _DASHED, "D"),
    "uherding": StrategyStyle("#009e73", _DOTTED, "^"),
    "bait": StrategyStyle("#7b4ea3", "-", "P"),
    "coreset": StrategyStyle("#009e73", "-", "o"),
    "deal": StrategyStyle("#cc79a7", "-", "o"),
    "deal-score": StrategyStyle("#cc79a7", _DASHED, "s"),
    "alges-img": StrategyStyle("#d55e00", "-", "o"),
    "alges-img-balanced": StrategyStyle("#d55e00", _DASHED, "D"),
    "alges-class": StrategyStyle("#d55e00", _MIXED, "v"),
    "alges-effort": StrategyStyle("#a8143c", "-", "P"),
    "alges-frugal": StrategyStyle("#a8143c", _DASHED, "X"),
    "alges-sem": StrategyStyle("#e69f00", "-", "o"),
    "alges-sem-vector": StrategyStyle("#e69f00", _DASHED, "^"),
    "alges-img-released": StrategyStyle("#d55e00", _DOTTED, "s"),
    "alges-sem-released": StrategyStyle("#e69f00", _DOTTED, "s"),
    "full": StrategyStyle("#808080", _DASHED, "D"),
}
_BY_SIZE: tuple[Dash, ...] = ("-", _DASHED, _MIXED)
"""Of windows, the finest grid's first."""

_OTHERS = ("#9467bd", "#8c6d31", "#17a2a8", "#b0486b")

PART_COLOURS = {"training": "#7b8fa3", "embedding": "#d55e00", "seeding": "#e69f00", "evaluation": "#b9c3cc"}


def in_order(names: Iterable[str]) -> list[str]:
    """Names without repetition: the product's strategies in their usual order, then a user's own as they come.

    A strategy's frames stand before its windows, and larger windows before smaller ones.
    """
    found = list(dict.fromkeys(names))
    known = {name: i for i, name in enumerate(_KNOWN)}
    own = {name: len(known) + i for i, name in enumerate(dict.fromkeys(parts(name)[0] for name in found))}
    return sorted(found, key=lambda name: ((own | known)[parts(name)[0]], windows_in_a_frame(name)))


def parts(curve: str) -> tuple[str, str]:
    """The strategy and the grid of windows of a curve's name, the grid empty for whole frames."""
    strategy, _, grid = curve.partition("@")
    return strategy, grid


def windows_in_a_frame(curve: str) -> int:
    """How many windows the curve's grid cuts a frame into, 1 for whole frames."""
    grid = parts(curve)[1]
    return math.prod(map(int, grid.split("x"))) if grid else 1


def strategy_styles(names: Iterable[str]) -> dict[str, StrategyStyle]:
    """A style for every name, in the order of `in_order`. A user's own strategies take the spare hues in turn."""
    ordered = in_order(names)
    sizes = sorted({windows_in_a_frame(name) for name in ordered}, reverse=True)
    of_strategy: dict[str, StrategyStyle] = {}
    own = 0
    for strategy in dict.fromkeys(parts(name)[0] for name in ordered):
        if strategy in _KNOWN:
            of_strategy[strategy] = _KNOWN[strategy]
        else:
            dash: Dash = "-" if own < len(_OTHERS) else _DASHED
            of_strategy[strategy] = StrategyStyle(_OTHERS[own % len(_OTHERS)], dash, "v")
            own += 1
    styles = {name: of_strategy[parts(name)[0]] for name in ordered}
    if sizes[:1] in ([], [1]):
        return styles
    dashes = {size: _BY_SIZE[min(i, len(_BY_SIZE) - 1)] for i, size in enumerate(sizes)} | {1: _DOTTED}
    return {name: replace(style, dash=dashes[windows_in_a_frame(name)]) for name, style in styles.items()}
