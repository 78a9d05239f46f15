"""Networks by name: seeds, heads, and what a user is told of one that cannot be had."""

from __future__ import annotations

import pytest
import torch

from alges_fast.errors import UserError
from alges_fast.last_layer import LastLayer
from alges_fast.models import build_model, check_image_size
from alges_fast.models.deal import DealModel


def build(**settings: object) -> torch.nn.Module:
    return build_model(**{"architecture": "fpn", "encoder": "mobilenet_v2", "num_classes": 5, "seed": 1, **settings})


def test_weights_come_from_the_seed_alone_and_no_global_generator_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("the GPUs' generators were set"))
    before = torch.get_rng_state()
    first = build().state_dict()
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(7)
    again, other = build().state_dict(), build(seed=2).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["segmentation_head.0.weight"], other["segmentation_head.0.weight"])


def test_the_default_is_a_unet_on_resnet18_with_the_papers_head() -> None:
    model = build_model(num_classes=13, seed=0)
    layer = LastLayer.find(model, torch.randn(1, 3, 64, 64))
    assert tuple(layer.module.weight.shape) == (13, 16, 1, 1)
    assert model(torch.randn(2, 3, 64, 64)).shape == (2, 13, 64, 64)


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_head_kernel_sets_the_last_convolution_and_keeps_the_size(kernel: int) -> None:
    model = build(head_kernel=kernel)
    layer = LastLayer.find(model, torch.randn(1, 3, 64, 64))
    assert layer.module.kernel_size == (kernel, kernel)
    check_image_size(model, 64)


def test_deal_gives_logits_in_eval_mode_so_that_any_strategy_can_use_it() -> None:
    model = DealModel(build(), 5, seed=0)
    images = torch.randn(2, 3, 64, 64)
    assert model.eval()(images).shape == (2, 5, 64, 64)
    logits, branch = model.train()(images)
    assert (logits.shape, branch.shape) == ((2, 5, 64, 64), (2, 64, 64))
    assert torch.equal(DealModel(build(), 5, seed=0).head.weight, model.head.weight)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"architecture": "unett"}, r"architecture 'unett' is unknown \(nearest: .*unet.*\): use one of .*unet"),
        ({"architecture": "frozn"}, r"architecture 'frozn' is unknown \(nearest: frozen\): use one of .*frozen"),
        ({"encoder": "resnet19"}, r"encoder 'resnet19' is unknown \(nearest: resnet18"),
        ({"head_kernel": 2}, "head_kernel 2 is not an odd size"),
        ({"num_classes": 1}, "at least 2"),
        ({"encoder_weights": "no-such"}, "no 'no-such' weights for encoder mobilenet_v2.*leave --encoder_weights out"),
    ],
)
def test_what_cannot_be_built_is_one_line_that_names_it(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(**settings)


def test_an_image_size_the_encoder_cannot_take_is_refused() -> None:
    with pytest.raises(UserError, match="image_size 50 does not suit this model"):
        check_image_size(build(architecture="unetplusplus"), 50)
