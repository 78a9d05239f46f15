"""ClaSP PE: power entropy, drawn for every class its share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor

from alges_fast.strategies.base import Query, Rating, Strategy
from alges_fast.strategies.embedding import embed, gathered
from alges_fast.strategies.gumbel import gumbels, log
from alges_fast.strategies.power import predicted_shares
from alges_fast.strategies.rating import by_choosing
from alges_fast.strategies.registry import register_strategy


@register_strategy
class Claspe(Strategy):
    """Two thirds of the picks are shared out equally over the classes by ln S_c + G / β, the others go by ln S + G / β.

    S_c = Σ over pixels of p_c H(p), S = Σ_c S_c. β goes from 1 in the first query to 100 in the last, 100^(t / (T-1)),
    so early ones explore and late ones take the most uncertain; T is one less than the rounds, of which the last asks
    for nothing. G is one number a candidate and round. Classes take turns, the rarest by predicted mass first, and
    every third pick goes by S: a prefix is shared out like the whole.
    """

    name: ClassVar[str] = "claspe"
    reference: ClassVar[str] = "class-stratified scheduled power predictive entropy, TMLR 2026, arXiv 2601.13677"

    def rate(self, query: Query) -> Rating:
        found = embed(query, ("class_entropy", "class_mass"))
        positions, class_entropy = gathered(query, found.positions, found.outputs["class_entropy"].double())
        shares = predicted_shares(query, found.outputs["class_mass"])
        noise = gumbels(query, positions) / sharpness(query.round, query.n_rounds - 1)
        turns = shares.sort(stable=True).indices.tolist()
        by_class = [log(class_entropy[:, k]) + noise for k in turns]
        overall = log(class_entropy.sum(1)) + noise

        def choose(n: int, picked: Sequence[int], closed: Tensor) -> list[int]:
            return stratified(by_class, overall, n, closed, len(picked))

        return by_choosing(query, positions, choose, overall)


def sharpness(query: int, n_queries: int) -> float:
    """β of a query, counted from 0: from 1 in the first to 100 in the last, in equal factors."""
    return 100.0 ** (min(query, n_queries - 1) / (n_queries - 1)) if n_queries > 1 else 1.0


def stratified(by_class: Sequence[Tensor], overall: Tensor, n: int, closed: Tensor, begun: int) -> list[int]:
    """n positions: of every three picks the first two are the best of a class, classes in turn, the third the best of
    all. So a prefix of any length is shared out like the whole.

    Args:
        by_class: (N,) a class's keys, in the order of turns; the largest is picked first, of equal ones the earlier.
        overall: (N,) keys of every third pick.
        n: how many, at most the open ones.
        closed: (N,) bool, what may not be picked.
        begun: picks made already, after which the turns go on.
    """
    orders = [iter(keys.sort(descending=True, stable=True).indices.numpy()) for keys in (*by_class, overall)]
    gone = closed.clone().numpy()
    picks: list[int] = []
    for pick in range(begun, begun + n):
        turn = len(by_class) if pick % 3 == 2 else (pick - pick // 3) % len(by_class)
        at = next(position for position in orders[turn] if not gone[position])
        gone[at] = True
        picks.append(int(at))
    return picks
