"""A window's embedding is the gradient of its own pixels' loss, whatever head and tail the model has."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alges_fast import LastLayer, PixelGradients, embed_pool
from alges_fast.last_layer import boxes
from alges_fast.losses import Loss, cross_entropy_with_dice
from alges_fast.ops import OUTPUTS, pixel_gradients
from alges_fast.windows import class_changes, windows_of

N_CLASSES, SIZE = 4, (19, 14)
REGIONS = (4, 3)


class Net(nn.Module):
    """A body, a head with a square kernel, and what follows it."""

    def __init__(self, kernel: int, tail: str) -> None:
        super().__init__()
        self.tail = tail
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, stride=2 if "x2" in tail else 1), nn.Tanh())
        self.head = nn.Conv2d(6, N_CLASSES, kernel, padding=kernel // 2)

    def forward(self, images: Tensor) -> Tensor:
        output: Tensor = self.head(self.body(images))
        if self.tail == "plus":
            return output + images[:, :1].sin()
        return F.interpolate(output, size=SIZE, mode=self.tail[3:]) if "x2" in self.tail else output


NETS = [(1, "nothing"), (3, "nothing"), (5, "nothing"), (3, "plus")]
NETS += [(kernel, f"x2 {mode}") for mode in ("bilinear", "nearest", "bicubic") for kernel in (1, 3)]
every_net = pytest.mark.parametrize(("kernel", "tail"), NETS)


def net(kernel: int, tail: str) -> Net:
    torch.manual_seed(kernel)
    return Net(kernel, tail).double().eval()


def images() -> Tensor:
    return torch.randn(2, 3, *SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(5))


def slices() -> list[tuple[slice, slice]]:
    return [window.box for window in windows_of("image", SIZE, REGIONS)]


@pytest.mark.parametrize(
    ("size", "regions"), [((19, 14), (4, 3)), ((8, 8), (8, 8)), ((7, 5), (1, 1)), ((480, 360), (7, 11))]
)
def test_windows_cover_every_pixel_once_and_are_of_like_size(size: tuple[int, int], regions: tuple[int, int]) -> None:
    covered = torch.zeros(size, dtype=torch.int64)
    windows = windows_of("image", size, regions)
    assert len(windows) == regions[0] * regions[1]
    for window in windows:
        covered[window.box] += 1
    assert bool((covered == 1).all())
    for sides in ({window.width for window in windows}, {window.height for window in windows}):
        assert max(sides) - min(sides) <= 1


@every_net
@pytest.mark.parametrize("loss", [None, cross_entropy_with_dice])
def test_a_windows_embedding_is_the_gradient_of_its_own_pixels_loss(kernel: int, tail: str, loss: Loss | None) -> None:
    model = net(kernel, tail)
    found = LastLayer.find(model, images()).window_gradients(images(), REGIONS, loss=loss).image
    for index in range(2 if loss is None else 1):
        for at, (ys, xs) in enumerate(slices()):
            logits = model(images()[index : index + 1])
            value = (loss or F.cross_entropy)(logits[:, :, ys, xs], logits.argmax(1)[:, ys, xs])
            (expected,) = torch.autograd.grad(value, model.head.weight)
            torch.testing.assert_close(found[index, at], expected, rtol=1e-9, atol=1e-12)


@every_net
@pytest.mark.parametrize("regions", [REGIONS, (1, 5)])
def test_cells_asked_for_at_once_are_those_asked_for_one_by_one(
    monkeypatch: pytest.MonkeyPatch, kernel: int, tail: str, regions: tuple[int, int]
) -> None:
    """As on a GPU: one call of the op for all windows."""
    layer = LastLayer.find(net(kernel, tail), images())
    outputs = [name for name in OUTPUTS if name != "norm_map" and layer.defines(name, images())]
    expected = layer.window_gradients(images(), regions, outputs=outputs)
    monkeypatch.setattr(boxes, "at_once", lambda features: True)
    calls: list[int] = []
    monkeypatch.setattr(boxes, "pixel_gradients", lambda *a, **k: (calls.append(1), pixel_gradients(*a, **k))[1])
    together = layer.window_gradients(images(), regions, outputs=outputs)
    for name in outputs:
        torch.testing.assert_close(getattr(together, name), getattr(expected, name), msg=name)
    if tail in ("none", "sum"):
        assert calls == [1]


@every_net
@pytest.mark.parametrize("regions", [None, REGIONS])
def test_outlines_are_those_of_the_models_own_classes_in_the_same_pass(
    regions: tuple[int, int] | None, kernel: int, tail: str
) -> None:
    model = net(kernel, tail)
    layer = LastLayer.find(model, images())
    passes: list[int] = []
    model.body.register_forward_hook(lambda *_: passes.append(1))
    found = layer.measure(images(), ("image", "outline"), regions=regions)
    assert passes == [1]
    alone = layer.measure(images(), ("image",), regions=regions)
    torch.testing.assert_close(found["image"], alone["image"], rtol=0, atol=0)
    expected = class_changes(model(images()).argmax(1), regions or (1, 1))
    assert expected.any()
    windows = windows_of("image", SIZE, regions or (1, 1))
    sides = torch.tensor([(window.height + window.width) / 2 for window in windows]).expand(2, -1)
    if regions is None:
        expected, sides = expected[:, 0], sides[:, 0]
    torch.testing.assert_close(found["outline"], torch.stack([expected, sides], -1), rtol=0, atol=0)
    pooled = embed_pool(model, images(), output=("outline",), regions=regions, progress=False)
    torch.testing.assert_close(pooled.values, found["outline"], rtol=0, atol=0)


@pytest.mark.parametrize(("kernel", "tail"), [one for one in NETS if "bicubic" not in one[1]])
def test_every_output_is_that_of_an_image_of_which_the_window_alone_counts(kernel: int, tail: str) -> None:
    layer = LastLayer.find(net(kernel, tail), images())
    outputs = tuple(name for name in OUTPUTS if name != "norm_map")
    found = layer.window_gradients(images(), REGIONS, outputs=outputs)
    for at, (ys, xs) in enumerate(slices()):
        valid = torch.zeros(2, *SIZE, dtype=torch.bool)
        valid[:, ys, xs] = True
        expected = layer.pixel_gradients(images(), outputs=outputs, valid=valid)
        for name in outputs:
            value = getattr(found, name)[:, at]
            torch.testing.assert_close(value, getattr(expected, name), rtol=1e-9, atol=1e-12, msg=name)


class OneByOne(nn.Conv2d):
    """The model's own convolution, image by image: libraries choose its kernels, and so its bits, by the batch."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.cat([super(OneByOne, self).forward(image) for image in images.split(1)])


@pytest.mark.parametrize("tail", [nn.Identity(), nn.Upsample(scale_factor=3, mode="bilinear"), nn.Tanh()])
@pytest.mark.parametrize("kernel", [1, 3])
def test_an_image_has_the_same_bits_in_every_batch(kernel: int, tail: nn.Module) -> None:
    torch.manual_seed(6)
    head = nn.Sequential(OneByOne(6, N_CLASSES, kernel, padding=kernel // 2), tail)
    features = torch.randn(5, 6, 17, 13)
    layer = LastLayer.find(head, features)
    outputs = ("image", "semantic", "semantic_vector") if layer.defines("semantic", features) else ("image", "entropy")

    def both(images: Tensor) -> list[PixelGradients]:
        windows = layer.window_gradients(images, REGIONS, outputs=outputs)
        return [windows, layer.pixel_gradients(images, outputs=outputs)]

    together = both(features)
    for index in range(5):
        for many, alone in zip(together, both(features[index : index + 1]), strict=True):
            for name in outputs:
                assert torch.equal(getattr(many, name)[index], getattr(alone, name)[0]), name


@pytest.mark.parametrize(("kernel", "tail"), [(1, "nothing"), (3, "nothing"), (3, "x2 bilinear")])
def test_a_pool_of_windows_is_that_of_its_images_in_order(kernel: int, tail: str) -> None:
    model = net(kernel, tail).float()
    pool = [(f"frame{i}", torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(i))) for i in range(5)]
    found = embed_pool(model, pool, output=("image", "entropy"), regions=REGIONS, batch_size=2, progress=False)
    assert found.ids == tuple(name for name, _ in pool)
    layer = LastLayer.find(model, pool[0][1][None])
    for at, (_, image) in enumerate(pool):
        expected = layer.window_gradients(image[None], REGIONS, outputs=("image", "entropy"))
        torch.testing.assert_close(found.values[at], expected.image[0], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(found.outputs["entropy"][at], expected.entropy[0], rtol=1e-4, atol=1e-4)


def test_mistakes_are_named() -> None:
    layer = LastLayer.find(net(1, "nothing"), images())
    with pytest.raises(ValueError, match="20 rows x 3 columns of windows do not fit 19 x 14 pixels"):
        layer.window_gradients(images(), (20, 3))
    with pytest.raises(ValueError, match="norm_map has a number per pixel"):
        layer.window_gradients(images(), REGIONS, outputs=("norm_map",))
    with pytest.raises(ValueError, match="semantic not defined for this model"):
        LastLayer.find(net(1, "x2 bicubic"), images()).window_gradients(images(), REGIONS, outputs=("semantic",))
    volume = nn.Conv3d(1, 2, 1)
    with pytest.raises(ValueError, match="two spatial axes"):
        LastLayer.find(volume, torch.rand(1, 1, 4, 4, 4)).window_gradients(torch.rand(1, 1, 4, 4, 4), (2, 2))


@pytest.mark.parametrize("regions", [(1, 1), REGIONS])
def test_class_changes_count_unlike_neighbours_inside_each_window(regions: tuple[int, int]) -> None:
    classes = torch.randint(3, (2, *SIZE), generator=torch.Generator().manual_seed(0))
    expected = []
    for mask in classes.tolist():
        for window in windows_of(0, SIZE, regions):
            inside = [row[window.x : window.x + window.width] for row in mask[window.y : window.y + window.height]]
            beside = sum(a != b for row in inside for a, b in itertools.pairwise(row))
            expected.append(
                beside + sum(a != b for column in zip(*inside, strict=True) for a, b in itertools.pairwise(column))
            )
    assert class_changes(classes, regions).flatten().tolist() == expected
    with pytest.raises(ValueError, match="regions: 20 rows"):
        class_changes(classes, (20, 1))
