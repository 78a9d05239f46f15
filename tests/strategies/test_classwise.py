"""ALGES with every class its due, against the definition on a small pool."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from alges_fast.seeding.race import exponentials
from alges_fast.strategies import classwise
from alges_fast.strategies.classwise import balanced, seed_by_class

N, K, D = 40, 3, 4


def embeddings() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(N, K, D, generator=generator)
    return rows * torch.tensor([1.0, 5.0, 0.01]).view(1, K, 1) * torch.rand(N, 1, 1, generator=generator)


def test_balanced_rows_have_mean_norm_one_and_a_class_without_gradient_stays_zero() -> None:
    rows = embeddings()
    rows[:, 1] = 0
    found = balanced(rows, rows.norm(dim=2).mean(0))
    assert found.norm(dim=2).mean(0).tolist() == pytest.approx([1, 0, 1])
    torch.testing.assert_close(found[:, 2] / found[0, 2], rows[:, 2] / rows[0, 2])


def by_definition(rows: Tensor, n: int, existing: Tensor, classes: list[int], begun: int, seed: int) -> list[int]:
    """The race E_i / D²_i over the row of the class whose turn it is; of a row that is D² = 0 everywhere, E_i alone."""
    centres, picks = list(existing.double()), []
    for pick in range(begun, begun + n):
        k = classes[pick % len(classes)]
        keys = exponentials(range(len(rows)), seed, pick, 0, torch.device("cpu"))
        if centres:
            distances = torch.stack([(rows[:, k].double() - c[k]).square().sum(1) for c in centres]).amin(0)
            keys = keys / distances if bool(distances.any()) else keys
        keys[picks] = torch.inf
        picks.append(int(keys.argmin()))
        centres.append(rows[picks[-1]].double())
    return picks


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("n_existing", [0, 3])
def test_every_turn_draws_by_d2_in_its_classs_row(
    native: bool, n_existing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not native:
        monkeypatch.setattr(classwise, "cpu_kernels", lambda: None)
    rows = embeddings()
    existing = embeddings()[:n_existing] + 0.01
    options = {"classes": [2, 0, 1], "begun": 4, "seed": 11}
    found = seed_by_class(rows, torch.arange(N), N, existing, group=None, **options)
    assert found == by_definition(rows, N, existing, **options)


def test_a_class_without_gradient_takes_its_turn_at_random() -> None:
    rows = embeddings()
    rows[:, 1] = 0
    options = {"classes": [0, 1, 2], "begun": 0, "seed": 3}
    found = seed_by_class(rows, torch.arange(N), 12, rows[:0], group=None, **options)
    assert found == by_definition(rows, 12, rows[:0], **options)


def test_rows_that_are_not_finite_are_refused() -> None:
    rows = embeddings()
    rows[7, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="finite"):
        seed_by_class(rows, torch.arange(N), 5, rows[:2], classes=[0], begun=0, seed=0, group=None)
