"""Strategies beside one reference: differences, and what the reference needed for the same Dice."""

from __future__ import annotations

import math
from collections.abc import Mapping

from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from alges_fast.report.figures.layout import Styles, new_rows, text_width, write_title
from alges_fast.report.findings import Family
from alges_fast.report.saving import Saving
from alges_fast.report.style import Theme
from alges_fast.report.text import alone, factor, p_value, signed

MOST_ROWS = 24  # of more strategies the highest are drawn


def forest(family: Family, styles: Styles, theme: Theme) -> Figure:
    """The largest differences to one reference, with 95 % intervals; a filled dot separates after Holm."""
    highest = sorted(family.comparisons, key=lambda c: -c.difference)[:MOST_ROWS]
    ordered, resolvable = sorted(highest, key=lambda c: c.difference), family.resolvable
    intervals = ["" if theme.narrow else f"  [{signed(c.low)}, {signed(c.high)}]" for c in ordered]
    notes = [f"{signed(c.difference)}{interval}" for c, interval in zip(ordered, intervals, strict=True)]
    p_values = [p_value(c.p_holm) for c in ordered]
    p_width = text_width([*p_values, "p (Holm)"])
    fig, ax = new_rows(theme, [c.first for c in ordered], notes, top=0.45, bottom=0.85, right=0.4 + p_width)
    # Two seeds' intervals may be a hundred times as wide as the differences: those run off the paper.
    furthest = max(max(abs(c.difference) for c in ordered), 0.002)
    reach = 1.1 * min(5 * furthest, max(resolvable, *(max(abs(c.low), abs(c.high)) for c in ordered)))
    ax.axvspan(-resolvable, resolvable, color=theme.grid, alpha=0.6, linewidth=0, zorder=0)
    ax.axvline(0, color=theme.muted, linewidth=1)
    to_edge = 0.3 + text_width(notes) + p_width
    for y, c in enumerate(ordered):
        style = styles[c.first]
        ax.plot([c.low, c.high], [y, y], color=style.colour, linewidth=2)
        face = style.colour if c.separates else theme.paper
        ax.plot(
            c.difference, y, "o", markersize=7, markerfacecolor=face, markeredgecolor=style.colour, markeredgewidth=1.6
        )
        at = ("axes fraction", "data")
        ax.annotate(p_values[y], (1, y), (72 * to_edge, 0), at, "offset points", ha="right", va="center", fontsize=9)
    ax.annotate("p (Holm)", (1, 1), (72 * to_edge, 8), "axes fraction", "offset points", ha="right", fontsize=9)
    ax.set_xlim(-reach, reach)
    ax.xaxis.set_major_locator(MaxNLocator(4 if theme.narrow else 6, symmetric=True))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: signed(value) if value else "0"))
    ax.set_xlabel(f"difference in mean Dice over {family.over}")
    write_title(ax, f"each strategy minus {family.baseline}", theme)
    between = "\n" if theme.narrow else " · "
    key = f"filled: separates after Holm{between}grey: true differences these seeds would find less than 4 times in 5"
    fig.text(
        0.1 / theme.width, 0.06 / fig.get_figheight(), key, fontsize=7.5 if theme.narrow else 8.5, color=theme.muted
    )
    return fig


def label_savings(found: Mapping[str, Saving], styles: Styles, theme: Theme, *, what: str) -> Figure:
    """The largest savings, with 95 % intervals, on a logarithmic axis; a filled dot's interval excludes 1.

    A bound is an arrow head instead of a dot; what nothing bounds runs off the paper.
    """
    highest = sorted(found.items(), key=lambda item: -item[1].factor)[:MOST_ROWS]
    ordered = sorted(highest, key=lambda item: item[1].factor)
    notes = [(alone if theme.narrow else factor)(saving) for _, saving in ordered]
    fig, ax = new_rows(theme, [name for name, _ in ordered], notes, top=0.4, bottom=0.6)
    ends = [x for _, s in ordered for x in (s.factor, s.low, s.high) if math.isfinite(x) and x > 0]
    low, high = min(0.7, *ends) / 1.1, max(1.5, *ends) * 1.1
    ax.set_xscale("log")
    ax.set_xlim(low, high)
    ax.axvline(1, color=theme.muted, linewidth=1)
    for y, (name, saving) in enumerate(ordered):
        colour = styles[name].colour
        ax.plot([max(saving.low, low), min(saving.high, high)], [y, y], color=colour, linewidth=2)
        face = colour if saving.low > 1 or saving.high < 1 else theme.paper
        mark = saving.bound or "o"
        ax.plot(saving.factor, y, mark, markersize=7, color=colour, markerfacecolor=face, markeredgewidth=1.6)
    ticks = [tick for tick in (0.1, 0.2, 0.5, 1, 2, 3, 5, 10, 20, 50) if low <= tick <= high]
    ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    ax.minorticks_off()
    ax.grid(axis="x")
    fig.text(0.5, 0.12 / fig.get_figheight(), f"times as much {what}", ha="center")
    write_title(ax, "what random frames needed for the same Dice", theme)
    return fig
