"""Models of single pixels with one hidden layer: read as they are kept on the CPU, and told from their like."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from alges_fast import LastLayer
from alges_fast._native import cpu_kernels
from alges_fast.losses import focal
from alges_fast.ops import OUTPUTS

CLASSES = 5
BY_WINDOW = tuple(name for name in OUTPUTS if name != "norm_map")


class Changed(nn.Module):
    """A head whose argument, hidden activations or logits go through something else as well."""

    def __init__(
        self,
        before: Callable[[Tensor], Tensor] = lambda x: x,
        activation: Callable[[Tensor], Tensor] = torch.relu,
        kernels: tuple[int, int] = (1, 1),
    ) -> None:
        super().__init__()
        self.first = nn.Conv2d(12, 7, kernels[0], padding=kernels[0] // 2)
        self.last = nn.Conv2d(7, CLASSES, kernels[1], padding=kernels[1] // 2)
        self.before, self.activation = before, activation

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.activation(self.first(self.before(images))))


def head(**changes: object) -> nn.Module:
    torch.manual_seed(3)
    return Changed(**changes).eval()  # type: ignore[arg-type]


@pytest.fixture
def images() -> Tensor:
    torch.manual_seed(4)
    return torch.randn(3, 12, 9, 10).half().float().to(memory_format=torch.channels_last)


@pytest.mark.skipif(cpu_kernels() is None, reason="no native kernels")
@pytest.mark.parametrize("activation", [torch.relu, torch.relu_, nn.ReLU(), nn.functional.relu])
def test_the_same_numbers_without_running_the_model(images: Tensor, activation: Callable[[Tensor], Tensor]) -> None:
    model = head(activation=activation)
    layer = LastLayer.find(model, images)
    assert layer.reads_as_kept(images)
    calls: list[int] = []
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    valid = torch.rand(3, 9, 10) > 0.3
    for kept in (images, images.half(), images.contiguous()):
        expected = layer.pixel_gradients(images, outputs=OUTPUTS, valid=valid, backend="reference")
        calls.clear()
        found = layer.pixel_gradients(kept, outputs=OUTPUTS, valid=valid)
        assert not calls
        for name in OUTPUTS:
            torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-5, msg=name)
        found = layer.window_gradients(kept, (3, 4), outputs=BY_WINDOW)
        expected = layer.window_gradients(images, (3, 4), outputs=BY_WINDOW, backend="reference")
        for name in BY_WINDOW:
            torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-5, msg=name)
    handle.remove()


@pytest.mark.skipif(cpu_kernels() is None, reason="no native kernels")
@pytest.mark.parametrize("regions", [None, (3, 4)])
@pytest.mark.parametrize("outputs", [("outline",), ("outline", "image"), ("margin", "outline", "image")])
def test_the_outline_without_running_the_model(
    images: Tensor, regions: tuple[int, int] | None, outputs: tuple[str, ...]
) -> None:
    model = head()
    layer = LastLayer.find(model, images)
    assert layer.reads_as_kept(images.half(), outputs)
    assert not layer.reads_as_kept(images.contiguous(), outputs)
    expected = layer.measure(images, outputs, regions=regions, backend="reference")
    again = layer.measure(images.contiguous(), outputs, regions=regions)
    calls: list[int] = []
    handle = model.register_forward_hook(lambda *_: calls.append(1))
    found = layer.measure(images.half(), outputs, regions=regions)
    assert not calls
    handle.remove()
    assert tuple(found) == outputs
    for name in outputs:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-6, msg=name)
        torch.testing.assert_close(again[name], expected[name], rtol=1e-4, atol=1e-6, msg=name)
    half = images[..., :5] > images[..., 5:]
    masked = torch.cat([half[:, 0], half[:, 1]], 2)
    with_valid = layer.measure(images.half(), outputs, valid=masked)  # the outline counts all pixels all the same
    torch.testing.assert_close(with_valid["outline"], layer.measure(images, ("outline",))["outline"])


def test_halves_are_welcome_where_the_model_must_run(images: Tensor) -> None:
    layer = LastLayer.find(head(), images)
    for how in ({"loss": focal}, {"backend": "reference"}):
        found, expected = (layer.pixel_gradients(kept, **how) for kept in (images.half(), images))  # type: ignore[arg-type]
        assert torch.equal(found.image, expected.image)
    with torch.autocast("cpu", torch.bfloat16):
        assert not layer.reads_as_kept(images)
        layer.pixel_gradients(images)


def test_a_head_that_is_resized_runs_as_a_model(images: Tensor) -> None:
    model = nn.Sequential(head(), nn.Upsample(scale_factor=2, mode="bilinear")).eval()
    layer = LastLayer.find(model, images)
    expected = layer.measure(images, ("image", "outline"))
    for name, values in layer.measure(images.half(), ("image", "outline")).items():
        torch.testing.assert_close(values, expected[name])


def test_trained_on_after_it_was_found(images: Tensor) -> None:
    model = head()
    layer = LastLayer.find(model, images)
    with torch.no_grad():
        model.first.weight.mul_(-2)
        model.first.bias.add_(1)
    fresh = LastLayer.find(model, images).pixel_gradients(images, backend="reference")
    torch.testing.assert_close(layer.pixel_gradients(images.half()).image, fresh.image, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "model",
    [
        head(activation=nn.ReLU6()),
        head(activation=nn.LeakyReLU(0.1)),
        head(activation=lambda x: x),
        head(activation=lambda x: x.relu() + 1),
        head(activation=lambda x: x.relu().relu()),
        head(activation=nn.functional.gelu),
        head(before=lambda x: x / 2),
        head(before=lambda x: x.mul_(0.5)),
        head(before=torch.clone),
        head(kernels=(3, 1)),
        head(kernels=(1, 3)),
        nn.Sequential(nn.Conv2d(12, 7, 1), nn.ReLU(), nn.Conv2d(7, 7, 1), nn.ReLU(), nn.Conv2d(7, CLASSES, 1)).eval(),
        nn.Conv2d(12, CLASSES, 1).eval(),
        head().double(),
    ],
    ids=str,
)
def test_models_that_are_not_quite_that(model: nn.Module, images: Tensor) -> None:
    images = images.to(next(model.parameters()).dtype)
    layer = LastLayer.find(model, images.clone())
    assert not layer.reads_as_kept(images)
    exact, inputs = model.double(), images.double()
    expected = LastLayer.find(exact, inputs.clone()).pixel_gradients(inputs.clone(), outputs=("image",))
    model.to(images.dtype)
    found = layer.pixel_gradients(images.clone(), outputs=("image",))
    torch.testing.assert_close(found.image.double(), expected.image, rtol=1e-4, atol=1e-6)


def test_a_layer_that_is_not_what_it_says_is_seen(images: Tensor) -> None:
    class Doubled(nn.Conv2d):
        def forward(self, input: Tensor) -> Tensor:
            return 2 * super().forward(input)

    hooked, doubled = head(), head()
    hooked.first.register_forward_hook(lambda module, args, output: output.detach() * 2)
    doubled.first = Doubled(12, 7, 1)
    for model in (hooked, doubled):
        assert not LastLayer.find(model, images).reads_as_kept(images)
