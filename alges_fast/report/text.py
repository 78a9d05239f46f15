"""Numbers as the report writes them, in figures, tables and sentences alike, and the sentences of words.jinja."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from importlib import resources
from typing import Any

import jinja2

from alges_fast.report.saving import FULL_PART, Factor
from alges_fast.report.statistics import LEVEL, POWER, Comparison
from alges_fast.report.style import parts

MOST_LISTED = 12


def words(part: str, **values: Any) -> str:
    """What a part of the report says, from what its macro in words.jinja names; a line for each paragraph."""
    said: str = getattr(_template().module, part)(**values)
    return "\n".join(" ".join(paragraph.split()) for paragraph in said.split("\n\n") if paragraph.strip())


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)
    environment.globals |= {"full_part": FULL_PART, "level": LEVEL, "power": POWER}
    environment.filters |= {
        each.__name__: each for each in (dice, factor, interval, listed, parts, sides, whole_percent)
    }
    return environment.from_string((resources.files("alges_fast.report") / "words.jinja").read_text(encoding="utf-8"))


def dice(value: float) -> str:
    """ "0.448" """
    return f"{value:.3f}"


def signed(value: float) -> str:
    """ "+0.012" or "−0.012", with a minus sign instead of a hyphen."""
    return f"{value:+.3f}".replace("-", "−")


def factor(saving: Factor) -> str:
    """ "2.9 (2.2 to 3.8)", "> 2.9 (> 2.2)", or "–" where it is not known."""
    return f"{alone(saving)} ({interval(saving)})" if interval(saving) else alone(saving)


def alone(saving: Factor) -> str:
    """ "> 2.9": a factor without its interval."""
    return "–" if math.isnan(saving.factor) else f"{saving.bound} {saving.factor:.1f}".strip()


def interval(saving: Factor) -> str:
    """ "2.2 to 3.8", "> 2.2", or nothing where there is none."""
    if math.isnan(saving.factor) or math.isnan(saving.low):
        return ""
    return f"> {saving.low:.1f}" if math.isinf(saving.high) else f"{saving.low:.1f} to {saving.high:.1f}"


def percent(share: Factor) -> str:
    """ "12 % (10 to 15)", "> 40 %"."""
    text = f"{share.bound} {100 * share.factor:.0f} %".strip()
    if math.isnan(share.low) or math.isinf(share.high):
        return text
    return f"{text} ({100 * share.low:.0f} to {100 * share.high:.0f})"


def whole_percent(share: float) -> str:
    """ "95 %" """
    return f"{100 * share:.0f} %"


def sides(comparisons: Sequence[Comparison]) -> str:
    """ "above: a (+0.051); below: b (−0.020); not separate: c", the highest first."""
    said: dict[str, list[str]] = {"above": [], "below": [], "not separate": []}
    for c in sorted(comparisons, key=lambda c: -c.difference):
        said[c.side].append(f"{c.first} ({signed(c.difference)})" if c.separates else c.first)
    return "; ".join(f"{side}: {listed(names)}" for side, names in said.items() if names)


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
