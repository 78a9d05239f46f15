"""What a comparison shows and does not show, in sentences made from the statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from alges_fast.report.run_folder import RANDOM, RunFolder
from alges_fast.report.saving import OUTLINE, PIXELS, PRICED, Measure, Saving, savings
from alges_fast.report.statistics import (
    LEVEL,
    POWER,
    Comparison,
    areas,
    compare,
    compare_differences,
    differences_at_equal,
    smallest_resolvable,
)
from alges_fast.report.style import parts
from alges_fast.report.text import dice, factor, signed

RANDOM_WINDOWS = "random windows"
_BASELINES = (RANDOM, "stratified-random")
_NAMED = 12  # more separating pairs than this are counted in the sentence and left to the table
_PAIRED = 20  # more strategies than this are not compared each with each

CurveSavings = Mapping[str, Mapping[int, Saving]]
"""By strategy and number of labelled frames (or as many frames' pixels)."""


@dataclass(frozen=True)
class Family:
    """Every other strategy minus one baseline: one family for Holm's correction.

    Attributes:
        baseline: what the others are compared to; `RANDOM_WINDOWS` stands for those of each one's own grid.
        comparisons: in the strategies' order.
        resolvable: the true difference that the seeds would have found with 80 % probability.
    """

    baseline: str
    comparisons: Sequence[Comparison]
    resolvable: float


@dataclass(frozen=True)
class Findings:
    """Comparisons of learning curves, and what they save.

    Attributes:
        areas: mean Dice over the curve by strategy and seed, over labelled images or as many images' pixels.
        to_baselines: of these, a family for `random`, one for `stratified-random` and one for random windows, where
            they were run; where neither of the first two was, one for the first strategy. Empty where no two strategies
            have two seeds in common.
        at_equal_outline: the same families in mean Dice over the outline that both have drawn; empty where no windows
            were chosen (frames' outlines follow their number) or outlines were not recorded.
        pairs: every pair of strategies; a family of its own. Empty where they are too many to read.
        savings: against random frames, in each measure that was recorded.
        savings_to_windows: in outline, against random windows of the same grid.
    """

    areas: Mapping[str, Mapping[int, float]]
    to_baselines: Sequence[Family]
    at_equal_outline: Sequence[Family]
    pairs: Sequence[Comparison]
    savings: Mapping[Measure, CurveSavings]
    savings_to_windows: CurveSavings


def find(run: RunFolder) -> Findings:
    """Compare the strategies of a run that have a learning curve."""
    rows = run.curve_rows
    of_curve = areas(run.shared_rows)
    names = list(of_curve)
    by_baseline = {
        baseline: [(name, baseline) for name in names if name != baseline]
        for baseline in [name for name in _BASELINES if name in names] or names[:1]
    }
    own_windows = {name: f"{RANDOM}@{parts(name)[1]}" for name in names if parts(name)[1]}
    to_windows = [(name, other) for name, other in own_windows.items() if name != other and other in names]
    if to_windows:
        by_baseline[RANDOM_WINDOWS] = to_windows
    at_equal_outline = {
        baseline: compare_differences(
            (a, b, differences_at_equal(run.compared_rows, a, b, OUTLINE.column)) for a, b in pairs
        )
        for baseline, pairs in by_baseline.items()
        if run.windows
    }
    return Findings(
        areas=of_curve,
        to_baselines=_families({baseline: compare(of_curve, pairs) for baseline, pairs in by_baseline.items()}),
        at_equal_outline=_families(at_equal_outline),
        pairs=compare(of_curve) if len(names) <= _PAIRED else [],
        savings={
            measure: saved
            for measure in (OUTLINE, PIXELS, *PRICED)
            if (
                saved := _where_all_are(
                    {name: savings(rows, name, RANDOM, measure) for name in names if name != RANDOM}
                )
            )
        },
        savings_to_windows=_where_all_are({name: savings(rows, name, other) for name, other in to_windows}),
    )


def at_half(saved: Mapping[int, Saving]) -> int:
    """The number of labelled frames in the middle of those that savings are known for: one place, fixed beforehand."""
    return sorted(saved)[(len(saved) - 1) // 2]


def _families(found: Mapping[str, Sequence[Comparison]]) -> list[Family]:
    return [
        Family(baseline, comparisons, smallest_resolvable(comparisons))
        for baseline, comparisons in found.items()
        if comparisons
    ]


def _where_all_are(found: CurveSavings) -> CurveSavings:
    """Curves that savings are known for, as far as the shortest goes: random windows may be labelled for longer."""
    known = {name: saved for name, saved in found.items() if saved}
    last = min((max(saved) for saved in known.values()), default=0)
    return {name: {n: saving for n, saving in saved.items() if n <= last} for name, saved in known.items()}


def sentences(run: RunFolder, findings: Findings) -> list[str]:
    """What a reader may take from the comparison, the verdict first."""
    families = findings.to_baselines
    said = _opening(run, findings)
    if not families:
        said.append(_no_verdict(findings))
    shown = findings.at_equal_outline or findings.to_baselines
    said += _verdicts(shown, "over equal outline" if findings.at_equal_outline else "over the learning curve")
    if not findings.at_equal_outline and findings.pairs and families and len(families[0].comparisons) > 1:
        said.append(_all_pairs(findings.pairs))
    if families:
        differences = " and ".join(f"of {family.resolvable:.3f} Dice to {family.baseline}" for family in shown)
        equal = " over equal outline" if findings.at_equal_outline else ""
        said.append(
            f"A true difference {differences}{equal} would have been found with a probability of {100 * POWER:.0f} %, "
            "given the spread over these seeds, and a smaller one less often: strategies that do not separate are not "
            "thereby equal."
        )
        said.append(
            "The tests take differences between seeds as normal, which so few seeds cannot check, and speak of this "
            "data set, network and training only."
        )
    if missing := run.missing():
        listed = "; ".join(missing[:6]) + (f"; and {len(missing) - 6} more" if len(missing) > 6 else "")
        said.append(
            f"The run is not finished: {listed}. Curves show what there is; comparisons use the seeds whose curves are "
            "as long as the longest."
        )
    return said


def _opening(run: RunFolder, findings: Findings) -> list[str]:
    """What was found in words for someone who draws outlines, not curves; nothing where random frames were not run."""
    measure = OUTLINE if run.windows else PIXELS
    families = findings.at_equal_outline if run.windows else findings.to_baselines
    saved = findings.savings.get(measure, {})
    if not families or families[0].baseline != RANDOM or not saved:
        return []
    ahead = [c for c in families[0].comparisons if c.separates and c.difference > 0 and c.first in saved]
    seeds = min(c.n for c in families[0].comparisons)
    if not ahead:
        if not run.windows:
            return []  # the verdict says it as plainly
        return [
            "For the same amount of drawing, no way of choosing frames or windows here gave a more accurate model than "
            f"frames chosen at random, beyond what {seeds} seeds can tell from chance."
        ]
    best = max(ahead, key=lambda c: c.difference).first
    at = at_half(saved[best])
    found, (strategy, grid) = saved[best][at], parts(best)
    of_a_frame = f" ({grid.replace('x', ' x ')} to a frame)" if grid else ""
    how = "at random" if strategy == RANDOM else f"by {strategy}"
    what = f"{'windows' if grid else 'frames'} chosen {how}{of_a_frame}"
    less = "less drawing" if run.windows else "fewer labelled frames"
    interval = f"95 % interval {factor(found).partition('(')[2].removesuffix(')')}, {found.n} seeds"
    if found.bound == ">":
        said = (
            f"{what[0].upper()}{what[1:]} gave an accuracy (mean Dice {dice(found.dice)}) that {found.frames:.0f} "
            f"randomly chosen frames do not reach, with at least {found.factor:.1f} times {less} ({interval})."
        )
    else:
        said = (
            f"To reach the accuracy that about {found.frames:.0f} randomly chosen frames give (mean Dice "
            f"{dice(found.dice)}), {what} needed {found.factor:.1f} times {less} ({interval})."
        )
    lines = [said]
    if run.windows:
        priced = [
            f"{factor(other, interval=False)} times where opening a frame costs {100 * m.price:g} % of drawing it whole"
            for m in PRICED
            if (other := findings.savings.get(m, {}).get(best, {}).get(at))
        ]
        pixels = findings.savings.get(PIXELS, {}).get(best, {}).get(at)
        counted = [*priced, *([f"{factor(pixels, interval=False)} times in pixels"] if pixels else [])]
        if counted:
            lines.append(f"Drawing is the length of the outlines alone; the same saving is {_listed(counted)}.")
    if len(families[0].comparisons) > 1:
        lines.append(
            f"{best} is named because it lies highest of {len(families[0].comparisons)} ways of choosing in this run: "
            "other data will show somewhat less of it. The table has them all."
        )
    return lines


def of_pixels(findings: Findings) -> list[str]:
    """The verdicts over equal pixels, where those over equal outline are what a reader sees first."""
    if not findings.at_equal_outline:
        return []
    pairs = [_all_pairs(findings.pairs)] if findings.pairs else []
    return [*_verdicts(findings.to_baselines, "over equal pixels"), *pairs]


def _verdicts(families: Sequence[Family], where: str) -> list[str]:
    if not families:
        return []
    more = families[1:] if len(families[0].comparisons) > 1 else []
    first = _verdict(families[0], _method(families[0], where))
    return [first, *(_verdict(family, "by the same test") for family in more)]


def _no_verdict(findings: Findings) -> str:
    if len(findings.areas) < 2:
        return "Fewer than two strategies have a learning curve, so there is nothing to compare."
    return (
        "No two strategies have two finished seeds in common, so nothing here tells a difference between "
        "strategies from the luck of one seed. Run more seeds (--seeds 0,1,2,3,4) to compare."
    )


def _method(family: Family, where: str) -> str:
    n = sorted({comparison.n for comparison in family.comparisons})
    seeds = f"{n[0]}" if len(n) == 1 else f"{n[0]} to {n[-1]}"
    how = f"in mean Dice {where}, paired over {seeds} seeds (t-test at {100 * LEVEL:.0f} %"
    tests = len(family.comparisons)
    return how + (f", Holm's correction for {tests} comparisons)" if tests > 1 else ")")


def _verdict(family: Family, how: str) -> str:
    tested, baseline = family.comparisons, family.baseline
    above = [c for c in tested if c.separates and c.difference > 0]
    below = [c for c in tested if c.separates and c.difference < 0]
    if not above and not below:
        names = tested[0].first if len(tested) == 1 else "No strategy"
        verb = "does not separate" if len(tested) == 1 else "separates"
        return f"{names} {verb} from {baseline} {how}."
    said = [
        f"{_some([f'{c.first} ({signed(c.difference)})' for c in sorted(group, key=lambda c: -abs(c.difference))])} "
        f"{'lies' if len(group) == 1 else 'lie'} {where} {baseline}"
        for group, where in ((above, "above"), (below, "below"))
        if group
    ]
    rest = [c.first for c in tested if not c.separates]
    left = f" Not separate from it: {_some(rest)}." if rest else ""
    return f"{' and '.join(said)} {how}.{left}"


def _all_pairs(pairs: Sequence[Comparison]) -> str:
    apart = [c for c in pairs if c.separates]
    if not apart:
        return f"Of {len(pairs)} pairs of strategies, none separates."
    start = f"Of {len(pairs)} pairs of strategies, {len(apart)} {'separates' if len(apart) == 1 else 'separate'}"
    if len(apart) > _NAMED:
        return f"{start}; the table of pairs lists them."
    named = [f"{c.first} over {c.second}" if c.difference > 0 else f"{c.second} over {c.first}" for c in apart]
    return f"{start}: {_listed(named)}."


def _some(names: Sequence[str]) -> str:
    """The names, or the first of them and how many more there are."""
    return _listed(names if len(names) <= _NAMED else [*names[:3], f"{len(names) - 3} others"])


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
