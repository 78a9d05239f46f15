"""A strategy in a user's own file: one body for `run` and `select`, for frames and windows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from commands import SMALL
from data.trees import folder_tree
from torch import Tensor, nn

from alges_fast import Window, select
from alges_fast.errors import UserError
from alges_fast.run import main
from alges_fast.strategies import Query, Taken, get_strategy
from alges_fast.windows import named, windows_of

Pool = list[tuple[str, Tensor]]

OWN = """
from alges_fast.seeding import k_center_greedy
from alges_fast.strategies import Strategy, by_score, by_seeding, candidate_images
from alges_fast.strategies.embedding import embed

class Brightest(Strategy):
    name = "brightest"
    reference = "-"
    needs_model = False

    def rate(self, query):
        return by_score(query, {c: float(image.float().mean()) for c, image in candidate_images(query)})

class Spread(Strategy):
    name = "spread"
    reference = "-"

    def rate(self, query):
        found = embed(query, ("semantic",))
        return by_seeding(query, found.outputs["semantic"], found.positions, k_center_greedy)

class Nameless(Strategy):
    reference = "-"

class Up(Brightest):
    name = "../up"
"""
REGIONS, SIZE = (2, 3), (8, 9)


@pytest.fixture
def own(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(OWN)
    return f"{tmp_path}/mine.py"


@pytest.fixture
def pool() -> Pool:
    generator = torch.Generator().manual_seed(0)
    return [(f"frame{i:02d}", torch.rand(3, *SIZE, generator=generator)) for i in range(12)]


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1)).eval()


def brightness(pool: Pool) -> dict[Window, float]:
    return {
        window: float(image[:, window.y :, window.x :][:, : window.height, : window.width].mean())
        for name, image in pool
        for window in windows_of(name, SIZE, REGIONS)
    }


def test_it_picks_frames_and_windows_in_select_with_no_model(own: str, pool: Pool) -> None:
    expected = sorted(pool, key=lambda item: -float(item[1].mean()))
    found = select(None, pool, 4, strategy=f"{own}:Brightest", labelled=[expected[1][0]])
    assert list(found.ids) == [name for name, _ in expected if name != expected[1][0]][:4]
    assert found.scores[expected[0][0]] == pytest.approx(float(expected[0][1].mean()))

    found = select(None, pool, pixels=5 * 12, regions=REGIONS, strategy=f"{own}:Brightest")
    scores = brightness(pool)
    assert list(found.ids) == sorted(scores, key=lambda window: -scores[window])[:5]


def test_it_asks_the_model_for_frames_and_for_windows(own: str, model: nn.Module, pool: Pool) -> None:
    frames = select(model, pool, 12, strategy=f"{own}:Spread", progress=False)
    assert set(frames.ids) == {name for name, _ in pool}
    windows = select(model, pool, pixels=12 * 72, regions=REGIONS, strategy=f"{own}:Spread", progress=False)
    assert set(windows.ids) == set(brightness(pool))


def test_a_query_may_hold_some_windows_of_a_frame_and_others_labelled(own: str, pool: Pool) -> None:
    scores = brightness(pool)
    order = sorted(scores, key=lambda window: -scores[window])
    labelled, free = order[:7], [window for window in scores if window not in order[:7]]
    query = Query(free, pool, labelled=labelled, regions=REGIONS)
    rating = get_strategy(f"{own}:Brightest")().rate(query)
    assert rating.draw(3, Taken()) == order[7:10]
    assert rating.draw(3, Taken(order[7:8], order[8:9])) == order[9:12]
    assert dict(rating.scores) == pytest.approx({window: scores[window] for window in free})


def test_it_picks_frames_and_windows_in_run(own: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALGES_FAST_CACHE", str(tmp_path / "cache"))
    root = folder_tree(tmp_path / "data", 6)
    monkeypatch.setattr("alges_fast.experiment.loop.write_report", lambda out: None)
    argv = ["--data_root", str(root), "--rounds", "2", "--strategies", f"{own}:Brightest,{own}:Spread"]
    assert main([*SMALL, *argv, "--regions", "none,2x3", "--out", str(tmp_path / "out")]) == 0
    bright, spread, bright_windows, spread_windows = (
        json.loads((tmp_path / "out" / name / "seed0" / "round00" / "picks.json").read_text())
        for name in ("brightest", "spread", "brightest@2x3", "spread@2x3")
    )
    assert bright["ids"] == [max(bright["scores"], key=bright["scores"].get)]
    assert len(bright["scores"]) == 4
    assert len(spread["ids"]) == 1
    scores = bright_windows["scores"]
    assert bright_windows["ids"] == sorted(scores, key=scores.get, reverse=True)
    for found in (bright_windows, spread_windows):  # as many pixels as a frame of 32 x 32, but for the rest of a window
        windows = [named(name) for name in found["ids"]]
        assert 32**2 - 16 * 11 < sum(window.pixels for window in windows if isinstance(window, Window)) <= 32**2


def test_what_cannot_be_a_strategy_is_refused(own: str, tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("1 / 0")
    for name, why in (
        *[(f"{own}:Missing", "has no Missing"), (f"{own}:Nameless", "class attribute name")],
        *[(f"{own}:Up", "names a folder"), (f"{tmp_path}/absent.py:Brightest", "no file")],
        *[(f"{tmp_path}/broken.py:Brightest", "ZeroDivisionError"), ("alges-image", r"unknown \(nearest: alges-img")],
    ):
        with pytest.raises(UserError, match=why):
            get_strategy(name)
    with pytest.raises(ValueError, match="'full' takes the whole pool"):
        get_strategy("full")().rate(Query(["a"], [("a", torch.zeros(3, 4, 4))])).draw(1, Taken())


def test_a_strategy_that_needs_a_model_says_so(own: str, pool: Pool) -> None:
    with pytest.raises(ValueError, match="strategy 'alges-img' needs a trained model, got None"):
        select(None, pool, 2)
    with pytest.raises(ValueError, match="asks a trained model"):
        get_strategy(f"{own}:Spread")().rate(Query([name for name, _ in pool], pool))


def test_strategies_that_need_no_model_pick_before_there_is_one(pool: Pool) -> None:
    for strategy in ("random", "stratified-random"):
        assert len(select(None, pool, 5, strategy=strategy).ids) == 5
        assert len(select(None, pool, pixels=60, regions=REGIONS, strategy=strategy).ids) == 5
