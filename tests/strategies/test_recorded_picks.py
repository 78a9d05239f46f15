"""Every built-in strategy's picks in two rounds of two seeds are those of the table that was recorded before
strategies came to rate for both drivers."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alges_fast.models.deal import DealModel
from alges_fast.strategies import Query, Taken, get_strategy
from tests.small_net import Net

RECORDED: dict[str, dict[str, dict[str, list[str]]]] = json.loads(
    Path(__file__).with_name("recorded_picks.json").read_text()
)
"""net -> strategy -> "seed s round r" -> ids in order of picking."""

N_FRAMES, N_LABELLED, N_CLASSES, N_PICKS = 60, 8, 4, 7
ROUNDS = list(itertools.product((0, 3), (0, 2)))
"""(seed, round)"""


class Resized(Net):
    def forward(self, images: Tensor) -> Tensor:
        return F.interpolate(super().forward(images), scale_factor=2, mode="bilinear")


def network(net: str, strategy: str) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    model = Resized(N_CLASSES, stride=2, norm=True) if net == "resized" else Net(N_CLASSES, norm=True)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator)
    model.body[1].running_mean = torch.randn(6, generator=generator)
    model.body[1].running_var = 0.5 + torch.rand(6, generator=generator)
    if strategy.startswith("deal"):
        deal = DealModel(model, N_CLASSES, seed=0)
        deal.gamma.data.fill_(0.7)
        return deal.eval()
    return model.eval()


def frames() -> list[tuple[str, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    images = torch.randn(N_FRAMES, 3, 12, 12, generator=generator)
    images *= torch.linspace(0.5, 2, N_FRAMES).view(-1, 1, 1, 1)
    return [(f"frame{i:02d}", image) for i, image in enumerate(images)]


def picks(net: str, strategy: str, seed: int, round: int) -> list[str]:
    items = frames()
    labelled = items[:: N_FRAMES // N_LABELLED][:N_LABELLED]
    query = Query(
        candidates=[name for name, _ in items if name not in dict(labelled)],
        pool=items,
        model=network(net, strategy),
        labelled=[name for name, _ in labelled],
        videos={name: f"video{i % 7 // 2}" for i, (name, _) in enumerate(items)},
        seed=seed,
        round=round,
        batch_size=4,
    )
    return list(get_strategy(strategy)().rate(query).draw(N_PICKS, Taken()))


@pytest.mark.parametrize(("net", "strategy"), [(net, name) for net, table in RECORDED.items() for name in table])
def test_picks_are_the_recorded_ones(net: str, strategy: str) -> None:
    found = {f"seed {seed} round {round}": picks(net, strategy, seed, round) for seed, round in ROUNDS}
    assert found == RECORDED[net][strategy]
