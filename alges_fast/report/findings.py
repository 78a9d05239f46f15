"""What a comparison shows and does not show, in sentences made from the statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from alges_fast.report.run_folder import RunFolder
from alges_fast.report.statistics import LEVEL, POWER, Comparison, areas, compare, smallest_resolvable
from alges_fast.report.text import signed

_BASELINES = ("random", "stratified-random")
_NAMED = 12  # more separating pairs than this are counted in the sentence and left to the table


@dataclass(frozen=True)
class Family:
    """Every other strategy minus one baseline: one family for Holm's correction.

    Attributes:
        baseline: what the others are compared to.
        comparisons: in the strategies' order.
        resolvable: the true difference that the seeds would have found with 80 % probability.
    """

    baseline: str
    comparisons: Sequence[Comparison]
    resolvable: float


@dataclass(frozen=True)
class Findings:
    """Comparisons of the areas under the learning curves.

    Attributes:
        areas: mean Dice over the curve by strategy and seed.
        to_baselines: a family for `random` and one for `stratified-random`, where they were run; where neither was,
            one for the first strategy. Empty where no two strategies have two seeds in common.
        pairs: every pair of strategies; a family of its own.
    """

    areas: Mapping[str, Mapping[int, float]]
    to_baselines: Sequence[Family]
    pairs: Sequence[Comparison]


def find(run: RunFolder) -> Findings:
    """Compare the strategies of a run that have a learning curve."""
    of_curve = areas(run.curve_rows)
    families = []
    for baseline in [name for name in _BASELINES if name in of_curve] or list(of_curve)[:1]:
        comparisons = compare(of_curve, [(name, baseline) for name in of_curve if name != baseline])
        if comparisons:
            families.append(Family(baseline, comparisons, smallest_resolvable(comparisons)))
    return Findings(of_curve, families, compare(of_curve))


def sentences(run: RunFolder, findings: Findings) -> list[str]:
    """What a reader may take from the comparison, the verdict first."""
    families = findings.to_baselines
    said = [_verdict(families[0], _method(families[0])) if families else _no_verdict(findings)]
    if families and len(families[0].comparisons) > 1:
        said += [_verdict(family, "by the same test") for family in families[1:]]
        said.append(_all_pairs(findings.pairs))
    if families:
        differences = " and ".join(f"of {family.resolvable:.3f} Dice to {family.baseline}" for family in families)
        said.append(
            f"A true difference {differences} would have been found with a probability of {100 * POWER:.0f} %, given "
            "the spread over these seeds, and a smaller one less often: strategies that do not separate are not "
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


def _no_verdict(findings: Findings) -> str:
    if len(findings.areas) < 2:
        return "Fewer than two strategies have a learning curve, so there is nothing to compare."
    return (
        "No two strategies have two finished seeds in common, so nothing here tells a difference between "
        "strategies from the luck of one seed. Run more seeds (--seeds 0,1,2,3,4) to compare."
    )


def _method(family: Family) -> str:
    n = sorted({comparison.n for comparison in family.comparisons})
    seeds = f"{n[0]}" if len(n) == 1 else f"{n[0]} to {n[-1]}"
    how = f"in mean Dice over the learning curve, paired over {seeds} seeds (t-test at {100 * LEVEL:.0f} %"
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
    parts = [
        f"{_listed([f'{c.first} ({signed(c.difference)})' for c in sorted(group, key=lambda c: -abs(c.difference))])} "
        f"{'lies' if len(group) == 1 else 'lie'} {where} {baseline}"
        for group, where in ((above, "above"), (below, "below"))
        if group
    ]
    rest = [c.first for c in tested if not c.separates]
    left = f" Not separate from it: {_listed(rest)}." if rest else ""
    return f"{' and '.join(parts)} {how}.{left}"


def _all_pairs(pairs: Sequence[Comparison]) -> str:
    apart = [c for c in pairs if c.separates]
    if not apart:
        return f"Of {len(pairs)} pairs of strategies, none separates."
    start = f"Of {len(pairs)} pairs of strategies, {len(apart)} {'separates' if len(apart) == 1 else 'separate'}"
    if len(apart) > _NAMED:
        return f"{start}; the table of pairs lists them."
    named = [f"{c.first} over {c.second}" if c.difference > 0 else f"{c.second} over {c.first}" for c in apart]
    return f"{start}: {_listed(named)}."


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
