"""The ways to draw from what a strategy knows: the highest scores first, by seeding, or in an order of its own."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from alges_fast.errors import UserError
from alges_fast.random_streams import stream_seed
from alges_fast.seeding import Seeding
from alges_fast.strategies.base import Candidate, Query, Rating, Taken, frame_of
from alges_fast.strategies.embedding import gather


def by_score(query: Query, scores: Mapping[Candidate, float]) -> Rating:
    """The highest scores first; of equal ones the earlier in the query.

    Args:
        query: what is asked.
        scores: candidate -> score, of this process's candidates.

    Raises:
        UserError: a score is not finite.
    """
    positions, values = [], []
    for at, candidate in enumerate(query.candidates):
        if candidate in scores:
            positions.append(at)
            values.append(float(scores[candidate]))
    broken = [at for at, value in zip(positions, values, strict=True) if not math.isfinite(value)]
    found = gather(query, broken)
    if n_broken := sum(map(len, found)):
        first = query.candidates[min(at for part in found for at in part)]
        raise UserError(
            f"the model makes a NaN or infinity of {n_broken} of the pool's candidates, first of {str(first)!r}: train "
            "at a lower --lr or in another --precision"
        )
    own, places = torch.tensor(values, dtype=torch.float64), torch.tensor(positions, dtype=torch.int64)
    order = own.argsort(descending=True, stable=True).tolist()

    def draw(n: int, taken: Taken) -> list[Candidate]:
        """From the n best of every process."""
        best: list[tuple[float, int]] = []
        for row in order:
            if len(best) == n:
                break
            if query.candidates[positions[row]] not in taken:
                best.append((-values[row], positions[row]))
        ranked = sorted(pair for part in gather(query, best) for pair in part)
        return [query.candidates[position] for _, position in ranked[:n]]

    return Rating(_rated(query, places), _Scores(query, places, lambda: own), draw)


def by_seeding(
    query: Query,
    points: Tensor,
    positions: Tensor,
    choose: Callable[..., Seeding],
    *,
    existing: Tensor | None = None,
    scores: Callable[[], Tensor] | None = None,
) -> Rating:
    """By k-means++ or another seeding, the points staying on the process that made them.

    What is taken and rated counts as picked from the start, but for what is `Taken.closed`. The first draw of a query
    has the seed of its "seeding" stream; later ones also depend on how many were drawn before.

    Args:
        query: what is asked.
        points, positions: this process's points (N, D), and where they are among the query's candidates, (N,).
        choose: `kmeans_plusplus`, `k_center_greedy` or what has their form.
        existing: (M, D) further points that count as picked from the start; the same on every process.
        scores: makes the scores (N,) of this process's candidates, where there are any.
    """
    points = points.to(query.device)
    labelled = frozenset(query.labelled)
    places: list[int] = positions.tolist()

    def draw(n: int, taken: Taken) -> list[Candidate]:
        free, picked = [], []
        for row, at in enumerate(places):
            if query.candidates[at] not in taken:
                free.append(row)
            elif query.candidates[at] not in taken.closed:
                picked.append(row)
        parts = gather(query, (len(free), [places[row] for row in picked], points[picked].cpu()))
        n = min(n, sum(n_free for n_free, _, _ in parts))
        if n == 0:
            return []
        centres = [at for _, ats, _ in parts for at in ats]
        drawn = [at for at in centres if not _is_labelled(query.candidates[at], labelled)]
        known = [] if existing is None else [existing]
        if centres:
            rows = torch.cat([rows for _, _, rows in parts if len(rows)])
            known.append(rows[torch.tensor(centres).argsort()])
        whole = len(free) == len(places)
        seeding = choose(
            points if whole else points[free],
            n,
            seed=stream_seed("seeding", query.seed, query.round, len(drawn)) if drawn else query.stream_seed("seeding"),
            existing=torch.cat([rows.to(points) for rows in known]) if known else None,
            group=query.group,
            # Named by their place in the query, candidates keep their random numbers whichever others are free.
            global_index=positions if whole else positions[free],
        )
        return [query.candidates[at] for at in seeding.indices.tolist()]

    return Rating(_rated(query, positions), {} if scores is None else _Scores(query, positions, scores), draw)


def by_order(query: Query, order: Sequence[Candidate]) -> Rating:
    """In an order that does not depend on what is taken; the same on every process."""

    def draw(n: int, taken: Taken) -> list[Candidate]:
        found: list[Candidate] = []
        for candidate in order:
            if len(found) == n:
                break
            if candidate not in taken:
                found.append(candidate)
        return found

    return Rating(query.candidates, {}, draw)


def by_choosing(
    query: Query,
    positions: Tensor,
    choose: Callable[[int, Sequence[int], Tensor], Sequence[int]],
    scores: Tensor | None = None,
) -> Rating:
    """By an algorithm over rows that every process holds.

    Args:
        query: what is asked.
        positions: (N,) ascending, where the rows of all processes are among the query's candidates.
        choose: (n, rows picked already, (N,) bool of the rows that may not be chosen) -> n rows, best first. There are
            n that may; what is taken and rated counts as picked, but for what is `Taken.closed`.
        scores: (N,) of the rows, where there are any.
    """
    ids = [query.candidates[at] for at in positions.tolist()]

    def draw(n: int, taken: Taken) -> list[Candidate]:
        gone = torch.tensor([item in taken for item in ids], dtype=torch.bool)
        picked = [row for row in gone.nonzero()[:, 0].tolist() if ids[row] not in taken.closed]
        n = min(n, len(ids) - int(gone.sum()))
        return [ids[row] for row in choose(n, picked, gone)] if n > 0 else []

    return Rating(ids, {} if scores is None else dict(zip(ids, scores.tolist(), strict=True)), draw)


def scores_of(rating: Rating, candidates: Collection[Candidate]) -> dict[Candidate, float]:
    """The scores of some of a rating's candidates, on every process; of others' candidates no more is sent. Empty where
    the strategy rates nothing by itself. Every process of the query's group makes the call."""
    if isinstance(rating.scores, _Scores):
        return rating.scores.of(candidates)
    return {candidate: rating.scores[candidate] for candidate in candidates if candidate in rating.scores}


class _Scores(Mapping[Candidate, float]):
    """The scores of every process's candidates in the query's order, made and gathered when they are first read."""

    def __init__(self, query: Query, positions: Tensor, make: Callable[[], Tensor]) -> None:
        self._query = query
        self._positions = positions
        self._make = make

    def of(self, candidates: Collection[Candidate]) -> dict[Candidate, float]:
        """Of these candidates alone, those that were rated."""
        wanted = frozenset(candidates)
        places = ((row, self._query.candidates[at]) for row, at in enumerate(self._positions.tolist()))
        own = {candidate: float(self._own[row]) for row, candidate in places if candidate in wanted}
        known = {candidate: score for part in gather(self._query, own) for candidate, score in part.items()}
        return {candidate: known[candidate] for candidate in candidates if candidate in known}

    @cached_property
    def _own(self) -> Tensor:
        return self._make().double().cpu()

    @cached_property
    def _found(self) -> dict[Candidate, float]:
        parts = gather(self._query, (self._positions, self._own))
        positions = torch.cat([positions for positions, _ in parts])
        order = positions.argsort()
        values = torch.cat([values for _, values in parts])[order].tolist()
        return dict(zip((self._query.candidates[at] for at in positions[order].tolist()), values, strict=True))

    def __getitem__(self, candidate: Candidate) -> float:
        return self._found[candidate]

    def __iter__(self) -> Iterator[Candidate]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


def _rated(query: Query, positions: Tensor) -> Sequence[Candidate]:
    """The candidates of every process; all but for images that were left out."""
    if sum(gather(query, len(positions))) == len(query.candidates):
        return query.candidates
    everywhere = torch.cat(gather(query, positions)).sort().values
    return [query.candidates[at] for at in everywhere.tolist()]


def _is_labelled(candidate: Candidate, labelled: frozenset[Candidate]) -> bool:
    return candidate in labelled or frame_of(candidate) in labelled
