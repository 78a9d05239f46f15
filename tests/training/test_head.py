"""Training of a frozen encoder's head: what it sees, what fixes its result, and that its optimiser is torch's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from alges_fast.labels import UNLABELLED
from alges_fast.models.frozen import PLAIN, FrozenHead, Projection
from alges_fast.strategies import get_strategy
from alges_fast.training.errors import Diverged, TooFewLabels
from alges_fast.training.head import PIXELS_A_THREAD, _AdamW, labels_on, train_head
from alges_fast.training.optimising import one_cycle

LOSS = get_strategy("random")().loss
CPU = torch.device("cpu")


def head(channels: int = 8) -> FrozenHead:
    return FrozenHead(Projection(torch.eye(channels), torch.zeros(channels), (channels,), PLAIN), 3, seed=0)


def maps(n: int = 4) -> tuple[torch.Tensor, np.ndarray]:
    """Features whose largest of the first three channels is the class."""
    features = torch.randn(n, 8, 6, 6, generator=torch.Generator().manual_seed(0)).half()
    return features, features[:, :3].float().argmax(1).numpy().astype(np.uint8)


def fit(features: torch.Tensor, labels: np.ndarray, **settings: object) -> torch.Tensor:
    model = head()
    options = {"steps": 60, "pixels": 32, "lr": 2e-2, "weight_decay": 1e-2, "seed": 0, "round": 0, "loss": LOSS}
    train_head(CPU, model, features, labels, **{**options, **settings})
    assert not model.training
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_it_learns() -> None:
    features, labels = maps(16)
    model = head()
    train_head(
        CPU, model, features, labels, steps=400, pixels=64, lr=2e-2, weight_decay=1e-2, seed=0, round=0, loss=LOSS
    )
    found = model(features.float()).argmax(1).numpy()
    assert (found == labels).mean() > 0.9


def test_weights_depend_on_seed_and_round_and_not_on_global_generators() -> None:
    first = fit(*maps())
    torch.manual_seed(9)
    np.random.seed(9)
    before = torch.get_rng_state()
    assert torch.equal(first, fit(*maps()))
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(first, fit(*maps(), seed=1))
    assert not torch.equal(first, fit(*maps(), round=1))


@pytest.mark.usefixtures("threads_of_its_own")
def test_a_small_step_is_taken_by_one_thread_and_torch_is_given_back_the_others() -> None:
    seen: list[int] = []

    def loss(*arguments: torch.Tensor) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        if torch.get_num_threads() == 2:
            raise ArithmeticError
        return LOSS(*arguments)

    torch.set_num_threads(3)
    fit(*maps(), loss=loss, pixels=2 * PIXELS_A_THREAD - 1)
    assert set(seen) == {1}
    assert torch.get_num_threads() == 3
    with pytest.raises(ArithmeticError):
        fit(*maps(), loss=loss, pixels=2 * PIXELS_A_THREAD)
    assert torch.get_num_threads() == 3


@pytest.mark.parametrize("whole_frames", [False, True])
def test_what_is_under_unlabelled_pixels_changes_nothing(whole_frames: bool) -> None:
    features, labels = maps()
    labels[:, :3] = UNLABELLED
    other = features.clone()
    other[:, :, :3] = 7.0
    settings = {"whole_frames": whole_frames}
    assert torch.equal(fit(features, labels, **settings), fit(other, labels, **settings))


def test_fewer_labelled_pixels_than_a_step_wants_are_all_shown() -> None:
    features, labels = maps()
    labels[:] = UNLABELLED
    labels[0, 0, :5] = 1
    shown: list[int] = []
    fit(features, labels, steps=3, on_step=shown.append)
    assert shown == [5, 5, 5]


def test_nothing_labelled_and_divergence_are_told() -> None:
    features, labels = maps()
    with pytest.raises(TooFewLabels, match="no pixel of the labelled frames has a class"):
        fit(features, np.full_like(labels, UNLABELLED))
    with pytest.raises(Diverged, match="loss nan"):
        fit(features * torch.inf, labels)


def test_labels_are_those_at_the_cells_centres() -> None:
    mask = np.arange(64, dtype=np.uint8).reshape(1, 8, 8)
    assert labels_on((2, 2), mask).tolist() == [[[18, 22], [50, 54]]]
    assert labels_on((8, 8), mask).tolist() == mask.tolist()
    assert labels_on((2, 2), mask[:, :7, :7]).shape == (1, 2, 2)


def test_the_optimiser_is_adamw_under_one_cycle() -> None:
    ours, theirs = nn.Linear(3, 2), nn.Linear(3, 2)
    theirs.load_state_dict(ours.state_dict())
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=0.1, weight_decay=0.3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=20, pct_start=0.3, cycle_momentum=False)
    mine = _AdamW(ours, 0.3)
    for step in range(20):
        inputs = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
        for model in (ours, theirs):
            model(inputs).square().sum().backward()
        assert one_cycle(step, 20, 0.1) == pytest.approx(schedule.get_last_lr()[0])
        optimizer.step()
        optimizer.zero_grad()
        mine.step(one_cycle(step, 20, 0.1))
        schedule.step()
    assert torch.allclose(ours.weight, theirs.weight, atol=1e-6)
