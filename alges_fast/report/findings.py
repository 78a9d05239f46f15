"""What a comparison shows and does not show, in sentences made from the statistics."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from alges_fast.report.run_folder import RunFolder
from alges_fast.report.statistics import LEVEL, POWER, Comparison, areas, compare, smallest_resolvable
from alges_fast.report.text import signed

_REFERENCES = ("random", "stratified-random")
_NAMED = 12  # more separating pairs than this are counted in the sentence and left to the table


@dataclass(frozen=True)
class Findings:
    """Comparisons of the areas under the learning curves.

    Attributes:
        areas: mean Dice over the curve by strategy and seed.
        reference: what the others are compared to: `random` where it was run.
        to_reference: every other strategy minus the reference; one family for Holm's correction.
        pairs: every pair of strategies; a second family.
        resolvable: the true difference to the reference that the seeds would have found with 80 % probability.
    """

    areas: Mapping[str, Mapping[int, float]]
    reference: str
    to_reference: Sequence[Comparison]
    pairs: Sequence[Comparison]
    resolvable: float


def find(run: RunFolder) -> Findings:
    """Compare the strategies of a run that have a learning curve."""
    of_curve = areas(run.curve_rows)
    reference = next((name for name in (*_REFERENCES, *of_curve) if name in of_curve), "")
    to_reference = compare(of_curve, [(name, reference) for name in of_curve if name != reference])
    return Findings(of_curve, reference, to_reference, compare(of_curve), smallest_resolvable(to_reference))


def sentences(run: RunFolder, findings: Findings) -> list[str]:
    """What a reader may take from the comparison, the verdict first."""
    said = [_verdict(findings)]
    if len(findings.to_reference) > 1:
        said.append(_all_pairs(findings.pairs))
    if findings.to_reference:
        said.append(
            f"A true difference to {findings.reference} of {findings.resolvable:.3f} Dice would have been found with a "
            f"probability of {100 * POWER:.0f} %, given the spread over these seeds, and a smaller one less often: "
            "strategies that do not separate are not thereby equal."
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


def _verdict(findings: Findings) -> str:
    if len(findings.areas) < 2:
        return "Fewer than two strategies have a learning curve, so there is nothing to compare."
    tested = findings.to_reference
    if not tested:
        return (
            "No two strategies have two finished seeds in common, so nothing here tells a difference between "
            "strategies from the luck of one seed. Run more seeds (--seeds 0,1,2,3,4) to compare."
        )
    n = sorted({comparison.n for comparison in tested})
    seeds = f"{n[0]}" if len(n) == 1 else f"{n[0]} to {n[-1]}"
    above = [c for c in tested if c.separates and c.difference > 0]
    below = [c for c in tested if c.separates and c.difference < 0]
    how = f"in mean Dice over the learning curve, paired over {seeds} seeds (t-test at {100 * LEVEL:.0f} %" + (
        f", Holm's correction for {len(tested)} comparisons)" if len(tested) > 1 else ")"
    )
    if not above and not below:
        names = tested[0].first if len(tested) == 1 else "No strategy"
        verb = "does not separate" if len(tested) == 1 else "separates"
        return f"{names} {verb} from {findings.reference} {how}."
    parts = [
        f"{_listed([f'{c.first} ({signed(c.difference)})' for c in sorted(group, key=lambda c: -abs(c.difference))])} "
        f"{'lies' if len(group) == 1 else 'lie'} {where} {findings.reference}"
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
