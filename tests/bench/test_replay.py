"""Picks of one run, made again by another network's: in order, and at once where a query is larger."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from alges_fast.errors import UserError
from alges_fast.strategies import Query, get_strategy
from alges_fast.windows import Window, windows_of

REPLAY = f"{Path(__file__).parents[2] / 'bench' / 'replay.py'}:Replay"


class Frames(list[tuple[str, torch.Tensor]]):
    ids = ("a", "b")


def test_recorded_picks_come_first_and_in_their_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    windows = [window for id in ("a", "b") for window in windows_of(id, (4, 4), (2, 2))]
    rounds = [[windows[5], windows[0]], [windows[7]], [Window("elsewhere", 0, 0, 2, 2), windows[2]]]
    for number, picks in enumerate(rounds):
        folder = tmp_path / "seed3" / f"round{number:02d}"
        folder.mkdir(parents=True)
        (folder / "picks.json").write_text(json.dumps({"ids": [str(window) for window in picks]}))
    query = Query(candidates=windows, pool=Frames(), regions=(2, 2), seed=3)
    monkeypatch.setenv("ALGES_FAST_REPLAY", str(tmp_path))
    draw = get_strategy(REPLAY)().rate(query).draw
    assert draw(3, ()) == [windows[5], windows[0], windows[7]]
    assert draw(3, {windows[5], windows[0]}) == [windows[7], windows[2], windows[1]]
    with pytest.raises(UserError, match=r"no picks under .*seed0: set ALGES_FAST_REPLAY"):
        get_strategy(REPLAY)().rate(Query(candidates=windows, pool=Frames(), regions=(2, 2)))
