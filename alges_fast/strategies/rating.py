"""The ways to draw from what a strategy knows: the highest scores first, by seeding, or in an order of its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from alges_fast.errors import UserError
from alges_fast.pool import Progress
from alges_fast.random_streams import stream_seed
from alges_fast.seeding import Seeding
from alges_fast.seeding.sketched import SketchedRows
from alges_fast.strategies.base import ByCandidate, Candidate, Query, Rating, Taken, positions_of
from alges_fast.strategies.embedding import gather
from alges_fast.windows import frame_of


def by_score(query: Query, scores: Mapping[Candidate, float]) -> Rating:
    """The highest scores first; of equal ones the earlier in the query.

    Args:
        scores: candidate -> score, of this process's candidates.

    Raises:
        UserError: a score is not finite.
    """
    if isinstance(scores, ByCandidate) and scores.candidates is query.candidates:
        places, own = scores.positions, scores.values_in_order.double()
    else:
        rows = [(at, float(scores[item])) for at, item in enumerate(query.candidates) if item in scores]
        places = torch.tensor([at for at, _ in rows], dtype=torch.int64)
        own = torch.tensor([value for _, value in rows], dtype=torch.float64)
    found = gather(query, places[~own.isfinite()].tolist())
    if n_broken := sum(map(len, found)):
        first = query.candidates[min(at for part in found for at in part)]
        raise UserError(
            f"the model makes a NaN or infinity of {n_broken} of the pool's candidates, first of {str(first)!r}: train "
            "at a lower --lr or in another --precision"
        )
    best_first = own.argsort(descending=True, stable=True)

    def draw(n: int, taken: Taken) -> list[Candidate]:
        """From the n best of every process."""
        _, gone = Taken.of(taken).among(query.candidates)
        best = best_first[~gone[places[best_first]]][:n]
        pairs = list(zip((-own[best]).tolist(), places[best].tolist(), strict=True))
        ranked = sorted(pair for part in gather(query, pairs) for pair in part)
        return [query.candidates[position] for _, position in ranked[:n]]

    return Rating(rated(query, places), _Scores(query, places, lambda rows: own if rows is None else own[rows]), draw)


def by_seeding(
    query: Query,
    points: Tensor | SketchedRows,
    positions: Tensor,
    choose: Callable[..., Seeding],
    *,
    existing: Tensor | None = None,
    scores: bool | Callable[[], Tensor] = False,
) -> Rating:
    """By k-means++ or another seeding, the points staying on the process that made them.

    What is taken and rated counts as picked from the start, but for what is `Taken.closed`. The first draw of a query
    has the seed of its "seeding" stream; later ones also depend on how many were drawn before.

    Args:
        points, positions: this process's points (N, D), and where they are among the query's candidates, (N,).
        choose: `kmeans_plusplus`, `k_center_greedy` or what has their form; of `SketchedRows` the first.
        existing: (M, D) further points that count as picked from the start; the same on every process.
        scores: whether a point's norm is its candidate's score; or what makes the scores (N,).
    """
    if isinstance(points, Tensor):
        points = points.to(query.device)
        order = positions.argsort()
        if not torch.equal(positions[order], positions):
            points, positions = points.index_select(0, order.to(points.device)), positions[order]
    labelled = frozenset(query.labelled)

    def draw(n: int, taken: Taken) -> list[Candidate]:
        at, gone = Taken.of(taken).among(query.candidates)
        free = ~gone[positions]
        held = torch.searchsorted(positions, at)
        mine = held < len(positions)
        mine[mine.clone()] = positions[held[mine]] == at[mine]
        n_free = int(free.sum())
        parts = gather(query, (n_free, at[mine].tolist(), points[held[mine].tolist()].cpu()))
        n = min(n, sum(n_free for n_free, _, _ in parts))
        if n == 0:
            return []
        centres = [at for _, ats, _ in parts for at in ats]
        drawn = [at for at in centres if not _is_labelled(query.candidates[at], labelled)]
        known = [] if existing is None else [existing]
        if centres:
            rows = torch.cat([rows for _, _, rows in parts if len(rows)])
            known.append(rows[torch.tensor(centres).argsort()])
        whole = n_free == len(positions)
        some: Tensor | SketchedRows
        if isinstance(points, SketchedRows):
            some, index = points if whole else points.only(free), positions
        else:
            some, index = (points, positions) if whole else (points[free.to(points.device)], positions[free])
        if isinstance(some, SketchedRows) and query.drawing is not None:  # the others are drawn in no time
            some.on_draw = _counting(query.drawing, n)
        seeding = choose(
            some,
            n,
            seed=stream_seed("seeding", query.seed, query.round, len(drawn)) if drawn else query.stream_seed("seeding"),
            existing=torch.cat([rows.to(points.device, points.dtype) for rows in known]) if known else None,
            group=query.group,
            # Named by their place in the query, candidates keep their random numbers whichever others are free.
            global_index=index,
        )
        return [query.candidates[at] for at in seeding.indices.tolist()]

    def score(rows: Tensor | None) -> Tensor:
        if callable(scores):
            all_scores: Tensor = scores()
            return all_scores if rows is None else all_scores[rows]
        some = torch.arange(len(points)) if rows is None else rows
        return torch.cat([torch.linalg.vector_norm(points[part.tolist()], dim=1) for part in some.split(_PIECE)])

    return Rating(rated(query, positions), _Scores(query, positions, score) if scores else {}, draw)


_PIECE = 1 << 14
"""Points whose scores are made at a time, where points are not kept."""


def _counting(drawing: Progress, n: int) -> Callable[[], None]:
    counted = itertools.count()
    return lambda: drawing(min(next(counted), n), n)


def by_order(query: Query, order: Sequence[Candidate] | Tensor) -> Rating:
    """In an order that does not depend on what is taken; the same on every process.

    Args:
        order: candidates, or their places in the query, (n,) int64.

    Raises:
        UserError: something in the order is no candidate.
    """
    places = order if isinstance(order, Tensor) else positions_of(query.candidates, order)
    if len(places) and int(places.min()) < 0:
        raise UserError(f"{str(order[int(places.argmin())])!r} was put in order, which is no candidate of the query")

    def draw(n: int, taken: Taken) -> list[Candidate]:
        _, gone = Taken.of(taken).among(query.candidates)
        return [query.candidates[at] for at in places[~gone[places]][:n].tolist()]

    return Rating(query.candidates, {}, draw)


def by_choosing(
    query: Query,
    positions: Tensor,
    choose: Callable[[int, Sequence[int], Tensor], Sequence[int]],
    scores: Tensor | None = None,
) -> Rating:
    """By an algorithm over rows that every process holds.

    Args:
        positions: (N,) ascending, where the rows of all processes are among the query's candidates.
        choose: (n, rows picked already, (N,) bool of the rows that may not be chosen) -> n rows, best first. There are
            n that may; what is taken and rated counts as picked, but for what is `Taken.closed`.
        scores: (N,) of the rows, where there are any.
    """
    whole = len(positions) == len(query.candidates)
    ids = query.candidates if whole else [query.candidates[at] for at in positions.tolist()]

    def draw(n: int, taken: Taken) -> list[Candidate]:
        picked, gone = Taken.of(taken).among(ids)
        n = min(n, len(ids) - int(gone.sum()))
        return [ids[row] for row in choose(n, picked.tolist(), gone)] if n > 0 else []

    return Rating(ids, {} if scores is None else ByCandidate(query.candidates, positions, scores), draw)


def scores_of(rating: Rating, candidates: Collection[Candidate]) -> dict[Candidate, float]:
    """The scores of some of a rating's candidates, on every process; of others' candidates no more is sent. Empty where
    the strategy rates nothing by itself. Every process of the query's group makes the call."""
    if isinstance(rating.scores, _Scores):
        return rating.scores.of(candidates)
    return {candidate: rating.scores[candidate] for candidate in candidates if candidate in rating.scores}


class _Scores(Mapping[Candidate, float]):
    """The scores of every process's candidates in the query's order, made and gathered when they are first read.

    Args:
        positions: (n,) int64 ascending, of which of the query's candidates this process makes them.
        make: makes those of some rows (m,) of these, or of all for None.
    """

    def __init__(self, query: Query, positions: Tensor, make: Callable[[Tensor | None], Tensor]) -> None:
        self._query = query
        self._positions = positions
        self._make = make

    def of(self, candidates: Collection[Candidate]) -> dict[Candidate, float]:
        """Of these candidates alone, those that were rated."""
        at = positions_of(self._query.candidates, candidates)
        rows = torch.searchsorted(self._positions, at)
        mine = (at >= 0) & (rows < len(self._positions))
        mine[mine.clone()] = self._positions[rows[mine]] == at[mine]
        own = dict(zip(at[mine].tolist(), self._make(rows[mine]).double().tolist(), strict=True)) if mine.any() else {}
        known = {position: score for part in gather(self._query, own) for position, score in part.items()}
        places = zip(candidates, at.tolist(), strict=True)
        return {candidate: known[position] for candidate, position in places if position in known}

    @cached_property
    def _all(self) -> ByCandidate:
        parts = gather(self._query, (self._positions, self._make(None).double().cpu()))
        positions = torch.cat([positions for positions, _ in parts])
        order = positions.argsort()
        values = torch.cat([values for _, values in parts])[order]
        return ByCandidate(self._query.candidates, positions[order], values)

    @cached_property
    def _found(self) -> dict[Candidate, float]:
        return dict(self._all.items())

    def __getitem__(self, candidate: Candidate) -> float:
        if len(self._all) > _MANY:
            return float(self._all[candidate])
        return self._found[candidate]

    def __iter__(self) -> Iterator[Candidate]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)


_MANY = 1 << 20
"""Candidates of whose scores no dictionary is made."""


def rated(query: Query, positions: Tensor) -> Sequence[Candidate]:
    """The candidates of every process; all but for images that were left out."""
    if sum(gather(query, len(positions))) == len(query.candidates):
        return query.candidates
    everywhere = torch.cat(gather(query, positions)).sort().values
    return [query.candidates[at] for at in everywhere.tolist()]


def _is_labelled(candidate: Candidate, labelled: frozenset[Candidate]) -> bool:
    return candidate in labelled or frame_of(candidate) in labelled
