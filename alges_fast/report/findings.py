"""What a comparison shows and does not show: the statistics, and which of them the summary tells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from alges_fast.report import statistics
from alges_fast.report.run_folder import RANDOM, RunFolder
from alges_fast.report.saving import IMAGES, Factor, Measure, Saving, measures_of, savings, share_of_full
from alges_fast.report.statistics import Comparison
from alges_fast.report.style import parts
from alges_fast.report.text import alone, percent, words

RANDOM_WINDOWS = "random windows"
"""The baseline that stands for the random windows of each one's own grid."""
_BASELINES = (RANDOM, "stratified-random")
_PAIRED = 20  # more strategies than this are not compared each with each

CurveSavings = Mapping[str, Mapping[int, Saving]]
"""By strategy and number of labelled frames (or as many frames' pixels)."""


@dataclass(frozen=True)
class Family:
    """Every other strategy minus one baseline, in the strategies' order: one family for Holm's correction."""

    baseline: str
    over: str
    """What the Dice that is compared is a mean over: "equal outline drawn"."""
    comparisons: Sequence[Comparison]

    @property
    def resolvable(self) -> float:
        """The true difference that the seeds would have found with 80 % probability."""
        return statistics.smallest_resolvable(self.comparisons)


@dataclass(frozen=True)
class Findings:
    """Comparisons of learning curves, and what they save.

    Attributes:
        measure: what labelling is counted in first.
        areas: mean Dice over the curve by strategy and seed, over labelled images or as many images' pixels.
        to_baselines: of these, a family for each of `_BASELINES` and for random windows, where they were run; without
            the former one for the first strategy. Empty where no two strategies have two seeds in common.
        at_equal: the same in mean Dice over as much of the measure as both have spent; empty without windows.
        pairs: every pair of strategies; a family of its own. Empty where they are too many to read.
        savings: against random frames, in each measure that was recorded.
        savings_to_windows: in the first measure, against random windows of the same grid.
        to_full: what each strategy takes to `FULL_PART` of full supervision's Dice, in each measure.
    """

    measure: Measure
    areas: Mapping[str, Mapping[int, float]]
    to_baselines: Sequence[Family]
    at_equal: Sequence[Family]
    pairs: Sequence[Comparison]
    savings: Mapping[Measure, CurveSavings]
    savings_to_windows: CurveSavings
    to_full: Mapping[Measure, Mapping[str, Factor]]

    @property
    def leading(self) -> Sequence[Family]:
        """The families that a reader sees first."""
        return self.at_equal or self.to_baselines


def find(run: RunFolder) -> Findings:
    """Compare the strategies of a run that have a learning curve."""
    rows, areas = run.curve_rows, statistics.areas(run.shared_rows)
    names = list(areas)
    baselines = [name for name in _BASELINES if name in names] or names[:1]
    pairs = {baseline: [(name, baseline) for name in names if name != baseline] for baseline in baselines}
    own = [(name, f"{RANDOM}@{parts(name)[1]}") for name in names if parts(name)[1]]
    pairs[RANDOM_WINDOWS] = [(name, other) for name, other in own if name != other and other in names]
    recorded = measures_of(rows, windows=run.windows)
    first = recorded[0] if run.windows and recorded else IMAGES
    whole = "equal pixels" if run.windows else "the learning curve"
    over_curve = {name: statistics.compare(areas, of) for name, of in pairs.items()}
    differences = {
        name: [(a, b, statistics.differences_at_equal(run.compared_rows, a, b, first.column)) for a, b in of]
        for name, of in pairs.items()
        if run.windows
    }
    at_equal = {name: statistics.compare_differences(of) for name, of in differences.items()}
    saved = {m: {name: savings(rows, name, RANDOM, m) for name in names if name != RANDOM} for m in recorded}
    full = {m: {name: share_of_full(rows, run.full_rows, name, m) for name in names} for m in recorded if run.full_rows}
    return Findings(
        measure=first,
        areas=areas,
        to_baselines=[Family(name, whole, of) for name, of in over_curve.items() if of],
        at_equal=[Family(name, f"equal {first.name}", of) for name, of in at_equal.items() if of],
        pairs=statistics.compare(areas) if len(names) <= _PAIRED else [],
        savings={measure: kept for measure, of in saved.items() if (kept := _as_far_as_all(of))},
        savings_to_windows=_as_far_as_all({a: savings(rows, a, b, first) for a, b in pairs[RANDOM_WINDOWS]}),
        to_full={measure: {name: share for name, share in of.items() if share} for measure, of in full.items()},
    )


def at_half(saved: Mapping[int, Saving]) -> int:
    """The number of labelled frames in the middle of those that savings are known for: one place, fixed beforehand."""
    return sorted(saved)[(len(saved) - 1) // 2]


def _as_far_as_all(found: CurveSavings) -> CurveSavings:
    """Curves that savings are known for, as far as the shortest goes: random windows may be labelled for longer."""
    known = {name: saved for name, saved in found.items() if saved}
    last = min((max(saved) for saved in known.values()), default=0)
    return {name: {n: saving for n, saving in saved.items() if n <= last} for name, saved in known.items()}


def sentences(run: RunFolder, findings: Findings) -> list[str]:
    """What a reader may take from the comparison, the verdict first."""
    return words("summary", run=run, families=findings.leading, opening=_opening(run, findings)).splitlines()


def _opening(run: RunFolder, findings: Findings) -> dict[str, Any]:
    """What the summary begins with, by the names of `found` in words.jinja; nothing without random frames.

    Named is the way of choosing that lies highest above random frames, or, where it does no better than they do, the
    random windows of its grid; random where none lies above.
    """
    families, measure = findings.leading, findings.measure
    saved = findings.savings.get(measure, {})
    if not families or families[0].baseline != RANDOM or not saved:
        return {}
    to_windows = [c for family in families if family.baseline == RANDOM_WINDOWS for c in family.comparisons]
    alike = {c.first: c.second for c in to_windows if c.side != "above"}
    ahead = [c.first for c in sorted(families[0].comparisons, key=lambda c: -c.difference) if c.side == "above"]
    ranked = [alike.get(name, name) for name in ahead]
    best = next((name for name in ranked if name in ahead and name in saved), RANDOM)
    at = at_half(saved[best]) if best in saved else 0
    others = {m: of[best][at] for m, of in findings.savings.items() if m != measure and at in of.get(best, {})}
    shares = findings.to_full.get(measure, {})
    return {
        "best": best,
        "saving": saved[best][at] if best in saved else None,
        "measure": measure,
        "rivals": [c for c in to_windows if c.second == best],
        "own": findings.savings_to_windows.get(best, {}).get(at),
        "others": [f"{alone(saving)} in {m.name}" for m, saving in others.items()],
        "comparisons": families[0].comparisons,
        "full": statistics.spread(row["dice"] for row in run.full_rows).mean,
        "to_full": [f"{name} {percent(shares[name])}" for name in dict.fromkeys((best, RANDOM)) if name in shares],
    }
