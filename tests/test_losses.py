"""Losses against their formulas, and the residual against autograd."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from alges_fast.losses import IGNORE, Loss, cross_entropy, cross_entropy_with_dice, focal, loss_residual


def example() -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    logits = torch.randn(3, 4, 5, 6, dtype=torch.float64)
    target = torch.randint(4, (3, 5, 6))
    target[0, :, :2] = IGNORE
    target[1] = IGNORE
    return logits, target


def test_cross_entropy_is_a_mean_over_counted_pixels_then_over_images() -> None:
    logits, target = example()
    expected = (F.cross_entropy(logits[:1], target[:1]) + 0 + F.cross_entropy(logits[2:], target[2:])) / 3
    torch.testing.assert_close(cross_entropy(logits, target), expected)


def test_dice_of_a_perfect_and_of_a_wrong_answer() -> None:
    """Two classes, half the pixels each: a perfect answer loses nothing, the opposite one (n + 1 - 1) / (n + 1)."""
    target = torch.tensor([[[0, 0, 1, 1]]])
    sure = 60.0 * (F.one_hot(target, 2).movedim(-1, 1).double() * 2 - 1)
    torch.testing.assert_close(cross_entropy_with_dice(sure, target), torch.tensor(0.0, dtype=torch.float64))
    opposite = cross_entropy_with_dice(-sure, target) - cross_entropy(-sure, target)
    torch.testing.assert_close(opposite, torch.tensor(1 - 1 / 5, dtype=torch.float64))


def test_focal_is_cross_entropy_for_gamma_0_and_forgives_the_easy() -> None:
    logits, target = example()
    torch.testing.assert_close(focal(logits, target, gamma=0.0), cross_entropy(logits, target))
    even = torch.zeros(1, 2, 1)
    torch.testing.assert_close(focal(even, torch.zeros(1, 1, dtype=torch.int64)), torch.tensor(0.25 * math.log(2)))


@pytest.mark.parametrize("gamma", [0.5, 1.0, 2.0])
def test_focal_of_a_sure_pixel_has_a_gradient_and_keeps_its_digits(gamma: float) -> None:
    logits = torch.tensor([[[200.0, 4.0], [-200.0, -4.0]]])
    found = loss_residual(logits, loss=lambda x, target: focal(x, target, gamma=gamma))
    exact = loss_residual(logits.double(), loss=lambda x, target: focal(x, target, gamma=gamma))
    torch.testing.assert_close(found.double(), exact, rtol=5e-4, atol=1e-30)


@pytest.mark.parametrize("loss", [cross_entropy, cross_entropy_with_dice, focal])
def test_ignored_pixels_change_nothing(loss: Loss) -> None:
    logits, target = example()
    counted = (target != IGNORE)[:, None].expand_as(logits)
    changed = torch.where(counted, logits, torch.randn_like(logits) * 9)
    torch.testing.assert_close(loss(changed, target), loss(logits, target))


@pytest.mark.parametrize("loss", [None, cross_entropy, cross_entropy_with_dice, focal])
def test_residual_is_the_gradient_times_the_number_of_valid_pixels(loss: Loss | None) -> None:
    logits, target = example()
    valid = target != IGNORE
    found = loss_residual(logits, loss=loss, valid=valid)
    for index in range(3):
        own = logits[index : index + 1].clone().requires_grad_()
        value = (loss or cross_entropy)(own, own.argmax(1).masked_fill(~valid[index], IGNORE))
        (gradient,) = torch.autograd.grad(value, own)
        torch.testing.assert_close(found[index], gradient[0] * valid[index].sum())
    assert not found[1].any()


def test_a_pixel_that_does_not_count_has_no_residual_whatever_the_loss() -> None:
    def smooth(logits: Tensor, target: Tensor) -> Tensor:
        return cross_entropy(logits, target) + logits.square().mean()

    logits, target = example()
    valid = target != IGNORE
    found = loss_residual(logits, loss=smooth, valid=valid)
    assert not found.movedim(1, -1)[~valid].any()
    assert found.movedim(1, -1)[valid].all()


def test_a_wrong_valid_is_named() -> None:
    logits, target = example()
    for loss in (None, cross_entropy):
        with pytest.raises(ValueError, match=r"valid must have shape \(3, 5, 6\), got \(3, 6, 5\)"):
            loss_residual(logits, loss=loss, valid=(target != IGNORE).mT)
        with pytest.raises(TypeError, match="valid must be bool, got int64"):
            loss_residual(logits, loss=loss, valid=target)


def test_residual_of_a_confident_pixel_keeps_its_digits() -> None:
    """p - 1 in float32 is 0 here; the closed form is minus the other class's p."""
    logits = torch.tensor([[[0.0], [-30.0]]])
    exact = 1 / (1 + math.exp(30.0))
    torch.testing.assert_close(loss_residual(logits), torch.tensor([[[-exact], [exact]]]), rtol=1e-5, atol=0)
    halves = torch.randn(1, 3, 4).bfloat16()  # give a float32 residual
    assert loss_residual(halves).dtype == torch.float32
    torch.testing.assert_close(loss_residual(halves), loss_residual(halves.float()))
