"""What a comparison shows and does not show: the statistics, and the sentences made from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from alges_fast.report import statistics
from alges_fast.report.run_folder import RANDOM, RunFolder
from alges_fast.report.saving import (
    FULL_PART,
    IMAGES,
    Factor,
    Measure,
    Saving,
    measures_of,
    savings,
    share_of_full,
)
from alges_fast.report.statistics import Comparison
from alges_fast.report.style import parts
from alges_fast.report.text import dice, factor, listed, percent, signed

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

    def families(over: str, of: Mapping[str, Sequence[Comparison]]) -> list[Family]:
        return [Family(baseline, over, comparisons) for baseline, comparisons in of.items() if comparisons]

    whole = "equal pixels" if run.windows else "the learning curve"

    def at_equal(of: Sequence[tuple[str, str]]) -> list[Comparison]:
        differences = [(a, b, statistics.differences_at_equal(run.compared_rows, a, b, first.column)) for a, b in of]
        return statistics.compare_differences(differences)

    saved = {m: {name: savings(rows, name, RANDOM, m) for name in names if name != RANDOM} for m in recorded}
    full = {m: {name: share_of_full(rows, run.full_rows, name, m) for name in names} for m in recorded if run.full_rows}
    return Findings(
        measure=first,
        areas=areas,
        to_baselines=families(whole, {baseline: statistics.compare(areas, of) for baseline, of in pairs.items()}),
        at_equal=families(f"equal {first.name}", {name: at_equal(of) for name, of in pairs.items() if run.windows}),
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
    said, families = _opening(run, findings), findings.leading
    if not families:
        said.append(
            "No two strategies have two finished seeds in common, so there is nothing to compare: nothing here tells a "
            "difference from the luck of one seed. Run more seeds (--seeds 0,1,2,3,4)."
        )
    said += [verdict(family) for family in families if family.baseline in (families[0].baseline, RANDOM_WINDOWS)]
    if families:
        smallest = listed([f"{family.resolvable:.3f} ({family.baseline})" for family in families])
        said.append(
            f"A true difference of {smallest} would have been found with a probability of "
            f"{100 * statistics.POWER:.0f} %: what does not separate is not thereby equal. All of it is of this data "
            "set, network and training only."
        )
    if missing := run.missing():
        said.append(f"The run is not finished: {listed(missing, by='; ')}. Seeds with shorter curves are not compared.")
    return said


def verdict(family: Family) -> str:
    """Which strategies lie above a baseline, and below, and which do not separate."""
    tested = sorted(family.comparisons, key=lambda c: -c.difference)
    groups = {
        "above": [f"{c.first} ({signed(c.difference)})" for c in tested if c.separates and c.difference > 0],
        "below": [f"{c.first} ({signed(c.difference)})" for c in tested if c.separates and c.difference < 0],
        "not separate": [c.first for c in tested if not c.separates],
    }
    said = "; ".join(f"{group}: {listed(names)}" for group, names in groups.items() if names)
    n = min(c.n for c in tested)
    return (
        f"Against {family.baseline}, in mean Dice over {family.over}: {said} (t-test paired over {n} seeds at "
        f"{100 * statistics.LEVEL:.0f} %, Holm's correction for {len(tested)})."
    )


def _opening(run: RunFolder, findings: Findings) -> list[str]:
    """What was found in words for someone who annotates, and whose doing it is; nothing without random frames."""
    families, saved = findings.leading, findings.savings.get(findings.measure, {})
    if not families or families[0].baseline != RANDOM or not saved:
        return []
    alike = {c.first: c.second for c in _to_windows(families) if not (c.separates and c.difference > 0)}
    ahead = {c.first: c.difference for c in families[0].comparisons if c.separates and c.difference > 0}
    ranked = [alike.get(name, name) for name in sorted(ahead, key=lambda name: -ahead[name])]
    best = next((name for name in ranked if name in ahead and name in saved), RANDOM)
    if best != RANDOM:
        said = _saved_by(best, findings)
    else:
        said = [
            "For as much labelling, no way of choosing gave a more accurate model than frames chosen at random, beyond "
            f"what {min(c.n for c in families[0].comparisons)} seeds can tell from chance."
        ]
    if shares := findings.to_full.get(findings.measure, {}):
        told = [f"{name} {percent(shares[name])}" for name in dict.fromkeys((best, RANDOM)) if name in shares]
        said.append(
            f"Every frame labelled gives {dice(statistics.spread(row['dice'] for row in run.full_rows).mean)}; to "
            f"{100 * FULL_PART:.0f} % of that, of its {findings.measure.name}: {listed(told)}."
        )
    return said


def _saved_by(best: str, findings: Findings) -> list[str]:
    """What a way of choosing saves, and how much of it random windows of its grid do."""
    saved, families = findings.savings[findings.measure][best], findings.leading
    at, (strategy, grid) = at_half(saved), parts(best)
    saving, rivals = saved[at], [c for c in _to_windows(families) if c.second == best]
    how = "chosen at random" if strategy == RANDOM else f"chosen by {strategy}"
    if rivals and not any(c.separates for c in rivals):
        how = "however chosen,"
    what = f"windows ({grid.replace('x', ' x ')} to a frame) {how}" if grid else f"frames {how}"
    least, reach = ("at least ", "do not reach") if saving.bound == ">" else ("", "give")
    said = [
        f"For the accuracy (mean Dice {dice(saving.dice)}) that {saving.frames:.0f} frames chosen at random {reach}, "
        f"{what} need {least}{saving.factor:.1f} times {findings.measure.less} "
        f"(95 % interval {factor(saving).partition('(')[2].removesuffix(')')}, {saving.n} seeds)."
    ]
    if rivals:
        said.append(f"Of {listed([c.first for c in rivals])} none does better than windows chosen at random.")
    elif own := findings.savings_to_windows.get(best, {}).get(at):
        said.append(f"Windows of the same grid chosen at random take {factor(own)} times as much as these.")
    elif grid:
        said.append("What is owed to windows and what to the choice is not known: random ones were not compared.")
    if strategy != RANDOM and (n := len(families[0].comparisons)) > 1:
        said.append(f"They are named as the highest of {n}: other data will show less of it.")
    others = {m: of[best][at] for m, of in findings.savings.items() if at in of.get(best, {})}
    told = [f"{factor(other, interval=False)} in {m.name}" for m, other in others.items() if m != findings.measure]
    return [*said, f"The same saving is {listed(told)}."] if told else said


def _to_windows(families: Sequence[Family]) -> list[Comparison]:
    return [c for family in families if family.baseline == RANDOM_WINDOWS for c in family.comparisons]
