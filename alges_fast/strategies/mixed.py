"""Every second pick at random: half of the labels are what a strategy asks for, half are what the pool looks like."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain, zip_longest
from typing import ClassVar

from alges_fast.strategies.base import Candidate, Query, Rating, Taken
from alges_fast.strategies.classwise import AlgesFrugal
from alges_fast.strategies.random import Random
from alges_fast.strategies.registry import register_strategy


@register_strategy
class AlgesHalf(AlgesFrugal):
    """Picks by `alges-frugal` and at random in turn, of n picks n - n // 2 by `alges-frugal`.

    What a model asks for does not follow the pool, and a model trained on it alone fits another distribution (Farquhar
    et al., ICLR 2021). With half a sample of the pool among the labels it is never far from it.
    """

    name: ClassVar[str] = "alges-half"
    reference: ClassVar[str] = "alges_fast; what choosing does to the risk as Farquhar et al., ICLR 2021"

    def rate(self, query: Query) -> Rating:
        return half_at_random(query, super().rate(query))


def half_at_random(query: Query, chosen: Rating) -> Rating:
    """Draws by `chosen`, and uniformly from its candidates, in turn. For later draws of `chosen` all picks count."""
    by_chance = Random().rate(replace(query, candidates=chosen.ids))

    def draw(n: int, taken: Taken) -> list[Candidate]:
        asked_for = chosen.draw(n - n // 2, taken)
        others = by_chance.draw(n - len(asked_for), Taken({*taken, *asked_for}))
        return [pick for pick in chain(*zip_longest(asked_for, others)) if pick is not None]

    return Rating(chosen.ids, chosen.scores, draw)
