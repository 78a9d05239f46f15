"""Budgets counted in predicted outline: what is spent, and that the model is asked once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from alges_fast import select
from alges_fast.windows import class_changes, windows_of
from tests.small_net import Net

Pool = list[tuple[str, Tensor]]

SIZE, SHOWN, REGIONS = (12, 16), (24, 32), (3, 4)
"""Of the model's logits; of the images as an annotator has them; rows and columns of windows."""


@pytest.fixture
def model() -> Net:
    torch.manual_seed(0)
    return Net(3, 5).eval()


@pytest.fixture(scope="module")
def pool() -> Pool:
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(20, 3, 3, 4, generator=generator)
    finer = torch.rand(20, 3, *SIZE, generator=generator) * torch.linspace(0, 2, 20).view(-1, 1, 1, 1)
    images = nn.functional.interpolate(coarse, SIZE, mode="bilinear") + finer
    return [(f"frame{i:02d}", image) for i, image in enumerate(images)]


def outlines(model: Net, pool: Pool, regions: tuple[int, int]) -> Tensor:
    """(20, R C), in pixels of the images: twice those of the logits."""
    with torch.no_grad():
        return 2 * class_changes(model(torch.stack([image for _, image in pool])).argmax(1), regions)


@pytest.mark.parametrize("strategy", ["alges-img", "alges-effort", "random"])
def test_windows_cost_what_as_many_pixels_of_frames_do_on_average(strategy: str, model: Net, pool: Pool) -> None:
    sizes = {id: SHOWN for id, _ in pool}
    budget, labelled = 3 * SHOWN[0] * SHOWN[1], ["frame00", "frame19"]
    options = {"regions": REGIONS, "strategy": strategy, "labelled": labelled, "sizes": sizes, "progress": False}
    found = select(model, pool, pixels=budget, budget="outline", **options)  # type: ignore[arg-type]
    measured = outlines(model, pool, REGIONS)
    windows = {id: windows_of(id, SHOWN, REGIONS) for id, _ in pool}
    free = list(enumerate(pool))[1:-1]
    at = {window: (i, cell) for i, (id, _) in free for cell, window in enumerate(windows[id])}
    assert found.outlines == {window: pytest.approx(float(measured[place])) for window, place in at.items()}
    spent = sum(float(measured[at[window]]) + 8 / 4 for window in found.ids)  # windows are 8 x 8
    average = float(measured[1:-1].sum(1).mean()) + (24 + 32) / 2 / 4
    assert spent <= 3 * average
    assert spent > 3 * average - float(measured.max()) - 8 / 4 - 1
    in_pixels = select(model, pool, pixels=budget, **options)  # type: ignore[arg-type]
    both = min(len(found.ids), len(in_pixels.ids))
    assert found.ids[:both] == in_pixels.ids[:both]
    assert in_pixels.outlines == {}


def test_frames_cost_what_n_of_them_do_on_average_and_rejected_ones_are_replaced_for_it(model: Net, pool: Pool) -> None:
    sizes = {id: SHOWN for id, _ in pool}
    found = select(model, pool, 6, budget="outline", strategy="random", seed=1, sizes=sizes, progress=False)
    measured = outlines(model, pool, (1, 1))[:, 0]
    cost = {id: float(value) + 28 / 4 for (id, _), value in zip(pool, measured, strict=True)}
    budget = 6 * sum(cost.values()) / len(cost)
    assert budget - max(cost.values()) - 1 < sum(cost[str(id)] for id in found.ids) <= budget
    assert found.outlines == {id: pytest.approx(float(value)) for (id, _), value in zip(pool, measured, strict=True)}
    other = found.reject([found.ids[0]])
    assert other.ids[: len(found.ids) - 1] == found.ids[1:]
    assert found.ids[0] not in other.ids
    assert sum(cost[str(id)] for id in other.ids) <= budget
    everything = select(model, pool, 20, budget="outline", strategy="random", sizes=sizes, progress=False)
    assert len(everything.ids) >= 19


def test_what_a_strategy_predicted_is_not_predicted_again(model: Net, pool: Pool, tmp_path: Path) -> None:
    seen: list[int] = []
    model.body.register_forward_hook(lambda _, images, output: seen.append(len(images[0])))
    options = {"regions": REGIONS, "strategy": "alges-effort", "progress": False, "resume": True}
    select(model, pool, pixels=400, out=tmp_path / "pixels", **options)  # type: ignore[arg-type]
    once = sum(seen)
    seen.clear()
    select(model, pool, pixels=400, budget="outline", out=tmp_path / "outline", **options)  # type: ignore[arg-type]
    assert sum(seen) == once


def test_no_outline_is_predicted_without_a_model(pool: Pool) -> None:
    with pytest.raises(ValueError, match="budget: outlines are predicted by a trained model"):
        select(None, pool, 3, budget="outline", strategy="random", progress=False)
