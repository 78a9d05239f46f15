"""Numbers as the report writes them, in figures, tables and sentences alike."""

from __future__ import annotations

import math
from collections.abc import Sequence

from alges_fast.report.saving import Factor

MOST_LISTED = 12


def dice(value: float) -> str:
    """ "0.448" """
    return f"{value:.3f}"


def signed(value: float) -> str:
    """ "+0.012" or "−0.012", with a minus sign instead of a hyphen."""
    return f"{value:+.3f}".replace("-", "−")


def factor(saving: Factor, *, interval: bool = True) -> str:
    """ "2.9 (2.2 to 3.8)", "> 2.9 (> 2.2)", or "–" where it is not known."""
    if math.isnan(saving.factor):
        return "–"
    text = f"{saving.bound} {saving.factor:.1f}".strip()
    if not interval or math.isnan(saving.low):
        return text
    if math.isinf(saving.high):
        return f"{text} (> {saving.low:.1f})"
    return f"{text} ({saving.low:.1f} to {saving.high:.1f})"


def percent(share: Factor) -> str:
    """ "12 % (10 to 15)", "> 40 %"."""
    text = f"{share.bound} {100 * share.factor:.0f} %".strip()
    if math.isnan(share.low) or math.isinf(share.high):
        return text
    return f"{text} ({100 * share.low:.0f} to {100 * share.high:.0f})"


def listed(names: Sequence[str], by: str = ", ") -> str:
    """ "a, b and c", of many the first and how many more there are."""
    if len(names) > MOST_LISTED:
        names = [*names[:3], f"{len(names) - 3} others"]
    return names[0] if len(names) == 1 else f"{by.join(names[:-1])} and {names[-1]}"


def p_value(value: float) -> str:
    """ "0.042" or "< 0.001"."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def count(n: int, noun: str) -> str:
    """ "1 seed" or "2 seeds"."""
    plural = f"{noun[:-1]}ies" if noun.endswith("y") else f"{noun}s"
    return f"{n} {noun if n == 1 else plural}"
