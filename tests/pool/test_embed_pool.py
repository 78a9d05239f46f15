"""`embed_pool`: one row per image whatever the form of the pool, its batches or its shards."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from pool_forms import CLASSES, N, Pairs, Stream, check
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from alges_fast import LastLayer, embed_pool
from alges_fast.data.frame_pool import FramePool
from alges_fast.losses import focal
from alges_fast.pool import pool_ids, pool_sizes
from alges_fast.pool.source import Source
from alges_fast.strategies.embedding import Frames


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_every_form_of_a_pool_gives_the_same_rows(
    model: nn.Module, images: Tensor, expected: Tensor, batch_size: int
) -> None:
    pairs = [(f"frame_{i}", image) for i, image in enumerate(images)]
    numbers = torch.arange(N)
    for pool, named in [
        (images, False),
        (images.numpy(), False),
        (list(images), False),
        ([image.numpy() for image in images], False),
        (pairs, True),
        (Pairs(images), True),
        (DataLoader(images, batch_size=batch_size), False),  # type: ignore[arg-type]
        (DataLoader(TensorDataset(images), batch_size=batch_size), False),
        (DataLoader(TensorDataset(numbers, images), batch_size=batch_size), False),
        (DataLoader(Pairs(images), batch_size=batch_size), True),
        (DataLoader(Stream(images), batch_size=batch_size), False),
    ]:
        check(embed_pool(model, pool, batch_size=batch_size, progress=False), expected, named=named)
    assert model.training
    assert model[0][1].training


def test_several_outputs_share_one_pass(model: nn.Module, images: Tensor) -> None:
    calls = []
    handle = model[0][0].register_forward_hook(lambda *_: calls.append(1))
    names = ("semantic", "entropy", "class_pixels", "norm_map")
    found = embed_pool(model, images, output=names, batch_size=N, last_layer="1", progress=False)
    handle.remove()
    assert len(calls) == 3  # two to find the layer
    whole = LastLayer.find(model, images).pixel_gradients(images, outputs=names)
    assert tuple(found.outputs) == names
    assert found.values is found.outputs["semantic"]
    for name in names:
        torch.testing.assert_close(found.outputs[name], getattr(whole, name), rtol=1e-5, atol=1e-6)


def test_a_loss_and_a_known_layer_are_passed_on(model: nn.Module, images: Tensor) -> None:
    layer = LastLayer.find(model, images)
    found = embed_pool(model, images, last_layer=layer, loss=focal, progress=False)
    torch.testing.assert_close(found.values, layer.pixel_gradients(images, loss=focal).image, rtol=1e-5, atol=1e-7)


def test_bytes_are_scaled_and_a_transform_takes_their_place(model: nn.Module) -> None:
    pixels = torch.randint(0, 256, (3, 3, 12, 10), dtype=torch.uint8)
    scaled = embed_pool(model, pixels.float() / 255, progress=False).values
    torch.testing.assert_close(embed_pool(model, pixels, progress=False).values, scaled)
    shifted = embed_pool(model, pixels.float() - 7, progress=False).values
    found = embed_pool(model, pixels, transform=lambda batch: batch.float() - 7, progress=False).values
    torch.testing.assert_close(found, shifted)


def test_precision_and_memory_format_cost_only_digits(model: nn.Module, images: Tensor, expected: Tensor) -> None:
    planar = embed_pool(model, images, channels_last=False, progress=False).values
    torch.testing.assert_close(planar, expected, rtol=1e-4, atol=1e-6)
    rough = embed_pool(model, images, precision="bf16-mixed", progress=False).values
    assert rough.dtype == torch.float32
    assert 0 < (rough - expected).norm() <= 0.05 * expected.norm()


def test_images_of_several_sizes(model: nn.Module, images: Tensor) -> None:
    pool = [images[0], images[1], images[2, :, :8], images[3, :, :8], images[4]]
    found = embed_pool(model, pool, batch_size=4, output=("image", "entropy"), progress=False)
    alone = [embed_pool(model, image[None], progress=False).values[0] for image in pool]
    torch.testing.assert_close(found.values, torch.stack(alone), rtol=1e-5, atol=1e-7)
    with pytest.raises(ValueError, match=r"norm_map of image 2 has shape \(8, 10\)"):
        embed_pool(model, pool, output="norm_map", progress=False)


@pytest.mark.parametrize("world_size", [2, 3, N + 2])
def test_shards_cover_the_pool_once(model: nn.Module, images: Tensor, expected: Tensor, world_size: int) -> None:
    for pool in (images, Pairs(images), DataLoader(Pairs(images), batch_size=2)):
        shards = [
            embed_pool(model, pool, batch_size=3, rank=rank, world_size=world_size, progress=False)
            for rank in range(world_size)
        ]
        positions = torch.cat([shard.positions for shard in shards])
        assert sorted(positions.tolist()) == list(range(N))
        values = torch.cat([shard.values for shard in shards])
        torch.testing.assert_close(values, expected[positions], rtol=1e-5, atol=1e-7)
        assert all(shard.values.shape[1:] == expected.shape[1:] for shard in shards)
        if pool is not images:
            assert [id for s in shards for id in s.ids] == [f"frame_{position}" for position in positions]


def test_progress_counts_images(model: nn.Module, images: Tensor) -> None:
    seen: list[tuple[int, int | None]] = []
    embed_pool(model, images, batch_size=4, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(0, N), (4, N), (8, N), (11, N)]


# NaN, ids, mistakes.


def test_a_bad_image_is_named(model: nn.Module, images: Tensor, caplog: pytest.LogCaptureFixture) -> None:
    images[2, 1, 4, 4] = float("nan")
    images[5, 0, 0, 0] = float("inf")
    with pytest.raises(ValueError, match="NaN or infinity in the pixels of image 'frame_2', 'frame_5'; on_nan='skip'"):
        embed_pool(model, Pairs(images), output="class_pixels", progress=False)
    assert model.training
    with caplog.at_level(logging.WARNING):
        found = embed_pool(model, Pairs(images), batch_size=4, on_nan="skip", progress=False)
    assert found.positions.tolist() == [0, 1, 3, 4, 6, 7, 8, 9, 10]
    assert found.ids == tuple(f"frame_{i}" for i in found.positions)
    assert found.values.isfinite().all()
    assert "left out 2 images: 'frame_2', 'frame_5'" in caplog.text


def test_the_first_image_may_be_the_bad_one(model: nn.Module, images: Tensor) -> None:
    """The layer is found on it, whatever it holds."""
    images[0] = float("nan")
    with pytest.raises(ValueError, match="pixels of image 0; on_nan"):
        embed_pool(model, images, progress=False)
    assert embed_pool(model, images, on_nan="skip", progress=False).ids == tuple(range(1, N))


@pytest.mark.parametrize("output", ["image", "norm_map"])
@pytest.mark.parametrize("pixels", [1, 250, 1_000_000])
def test_parts_of_a_batch_change_nothing(
    model: nn.Module, images: Tensor, monkeypatch: pytest.MonkeyPatch, pixels: int, output: str
) -> None:
    """On the CPU a batch goes through in parts, from single images to the whole."""
    whole = getattr(LastLayer.find(model, images).pixel_gradients(images, outputs=(output,)), output)
    monkeypatch.setattr("alges_fast.pool.transfer._CPU_PIXELS", pixels)
    found = embed_pool(model, images, output=output, batch_size=N, progress=False).values
    torch.testing.assert_close(found, whole, rtol=1e-5, atol=1e-7)


def test_a_model_that_overflows_is_told_from_a_bad_image(model: nn.Module, images: Tensor) -> None:
    images[3] *= 1e30  # its squares overflow
    with pytest.raises(ValueError, match="the model makes a NaN or infinity of image 3"):
        embed_pool(model, images, output="semantic", progress=False)


def test_a_shuffling_loader_must_name_its_images(model: nn.Module, images: Tensor, expected: Tensor) -> None:
    with pytest.raises(ValueError, match="a DataLoader that shuffles must give"):
        embed_pool(model, DataLoader(images, shuffle=True), progress=False)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="cannot be cut into shards"):
        embed_pool(model, DataLoader(Pairs(images), shuffle=True), rank=0, world_size=2, progress=False)
    found = embed_pool(model, DataLoader(Pairs(images), shuffle=True, batch_size=3), progress=False)
    order = [int(str(id).removeprefix("frame_")) for id in found.ids]
    assert sorted(order) == list(range(N))
    torch.testing.assert_close(found.values, expected[order], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("pool", "error", "message"),
    [
        (torch.zeros(0, 3, 8, 8), ValueError, "pool is empty"),
        ([], ValueError, "pool is empty"),
        (iter([torch.zeros(3, 8, 8)]), TypeError, "pool must be a sequence"),
        (Stream(torch.zeros(2, 3, 8, 8)), TypeError, "pool must be a sequence"),
        ({"a": torch.zeros(3, 8, 8)}, TypeError, r"got a mapping: list\(pool.items\(\)\)"),
        (np.zeros((2, 3, 8, 8), ">f4"), ValueError, "pool cannot be taken as a tensor: .*byte order"),
        ([np.zeros((3, 8, 8), np.float32)[::-1]], ValueError, "pool item 0 cannot be taken as a tensor: .*stride"),
        (
            [(torch.zeros(3, 8, 8), torch.zeros(8, 8))],
            TypeError,
            r"\(Tensor of shape \(3, 8, 8\), Tensor of shape",
        ),
        ([torch.zeros(3, 8, 8, dtype=torch.int64)], TypeError, "uint8 or floating, got torch.int64"),
        (DataLoader(TensorDataset(torch.zeros(2, 3), torch.zeros(2, 8))), TypeError, "must give batches of images"),
        (DataLoader(Stream(torch.zeros(0, 3, 8, 8))), ValueError, "pool is empty"),
    ],
)
def test_what_is_not_a_pool(model: nn.Module, pool: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        embed_pool(model, pool, progress=False)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"output": "images"}, "unknown name 'images'"),
        ({"output": ()}, "at least one"),
        ({"output": ("entropy", "image", "entropy")}, "output: 'entropy' is named twice"),
        ({"batch_size": 0}, "at least 1, got 0"),
        ({"on_nan": "ignore"}, "'raise' or 'skip', got 'ignore'"),
        ({"precision": "fp8"}, "one of 32-true, bf16-mixed, 16-mixed, got 'fp8'"),
        ({"resume": True}, "resume needs out"),
        ({"rank": 1}, "go together"),
        ({"rank": 2, "world_size": 2}, r"in 0\.\.world_size - 1"),
        ({"last_layer": "head"}, "no layer 'head'"),
        ({"last_layer": LastLayer.find(nn.Conv2d(3, CLASSES, 1), torch.zeros(1, 3, 8, 8))}, "found in another model"),
    ],
)
def test_bad_arguments(model: nn.Module, images: Tensor, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        embed_pool(model, images, progress=False, **arguments)  # type: ignore[arg-type]


# What a DataLoader may do to the order, and to the number, of its images.


class OneBuffer(Pairs):
    """A reader that gives every image in the same memory."""

    def __getitem__(self, index: int) -> tuple[str, Tensor]:
        vars(self).setdefault("buffer", np.empty(self.images.shape[1:], np.float32))[:] = self.images[index].numpy()
        return f"frame_{index}", self.buffer


def test_a_reader_may_use_its_memory_again(model: nn.Module, images: Tensor, expected: Tensor) -> None:
    check(embed_pool(model, OneBuffer(images), batch_size=4, progress=False), expected, named=True)


@pytest.mark.parametrize("name", [np.str_, np.int64, torch.tensor])
def test_ids_may_be_scalars_of_numpy_or_torch(
    model: nn.Module, images: Tensor, name: Callable[..., object], tmp_path: Path
) -> None:
    number = [str(7 * i) if name is np.str_ else 7 * i for i in range(N)]
    pairs = [(name(i), image) for i, image in zip(number, images, strict=True)]

    def collate(items: list[tuple[object, Tensor]]) -> tuple[list[object], Tensor]:
        return [name for name, _ in items], torch.stack([image for _, image in items])

    for pool in (pairs, DataLoader(pairs, batch_size=3, collate_fn=collate)):  # type: ignore[arg-type]
        found = embed_pool(model, pool, out=tmp_path / "image.npy", progress=False)
        assert found.ids == tuple(number)
        assert {type(id) for id in found.ids} == {type(number[0])}
        assert pool_ids(pool) == tuple(number)


class Listed(Pairs):
    def __init__(self, images: Tensor, ids: object) -> None:
        super().__init__(images)
        self.ids = ids


def test_known_ids_name_every_image_once(images: Tensor) -> None:
    assert pool_ids(Listed(images, np.arange(N))) == tuple(range(N))
    for ids in (["a"] * (N - 1), [None] * N):
        with pytest.raises(ValueError, match="its attribute ids must name its 11 images"):
            pool_ids(Listed(images, ids))
    twice = [(f"frame_{i % 10}", image) for i, image in enumerate(images)]
    for read in (pool_ids, pool_sizes, lambda pool: embed_pool(nn.Conv2d(3, 2, 1), pool, batch_size=2, progress=False)):
        with pytest.raises(ValueError, match="id 'frame_0' occurs twice"):
            read(twice)  # type: ignore[operator]
    with pytest.raises(ValueError, match="id 'a' occurs twice"):
        pool_ids(Listed(images, ["a"] * N))


def test_a_masked_array_is_refused(model: nn.Module, images: Tensor) -> None:
    masked = np.ma.masked_greater(images.numpy(), 1.0)
    for pool in (masked, [masked[0]], [("a", masked[0])]):
        with pytest.raises(TypeError, match="must not be a masked array, whose mask would be lost"):
            embed_pool(model, pool, progress=False)


# Files.


def test_values_in_a_file(model: nn.Module, images: Tensor, expected: Tensor, tmp_path: Path) -> None:
    out = tmp_path / "folder" / "image.npy"
    found = embed_pool(model, Pairs(images), batch_size=4, out=out, progress=False)
    check(found, expected, named=True)
    np.testing.assert_array_equal(np.load(out), found.values.numpy())
    again = embed_pool(model, images, batch_size=4, output=("image", "entropy"), out=tmp_path / "two", progress=False)
    np.testing.assert_array_equal(np.load(tmp_path / "two" / "entropy.npy"), again.outputs["entropy"].numpy())


def test_ids_file_is_one_json_value_a_line(model: nn.Module, images: Tensor, tmp_path: Path) -> None:
    embed_pool(model, Pairs(images), out=tmp_path / "image.npy", progress=False)
    lines = [json.loads(line) for line in (tmp_path / "image.npy.ids").read_text().splitlines()]
    assert lines[0]["output"] == "image"
    assert [line[:3] for line in lines[1:]] == [[i, f"frame_{i}", True] for i in range(N)]


def kept_features(n: int = N) -> Tensor:
    """Of a frozen encoder, float16 with channels last, and the head that reads them where they are."""
    torch.manual_seed(5)
    return torch.randn(n, 6, 7, 16).half().movedim(-1, 1)


def head_of_features() -> nn.Module:
    torch.manual_seed(6)
    return nn.Sequential(nn.Conv2d(16, 8, 1), nn.ReLU(), nn.Conv2d(8, CLASSES, 1))


@pytest.mark.parametrize("regions", [None, (2, 3)])
def test_features_that_are_read_as_they_are_kept(regions: tuple[int, int] | None) -> None:
    kept, head, names = kept_features(), head_of_features(), ("image", "class_mass", "class_pixels")
    expected = embed_pool(head, kept.float(), output=names, regions=regions, backend="reference", progress=False)
    for batch_size in (1, 4, 16):
        found = embed_pool(head, kept, output=names, regions=regions, batch_size=batch_size, progress=False)
        for name in names:
            torch.testing.assert_close(found.outputs[name], expected.outputs[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize(
    "output", ["image", "class_pixels", ("class_pixels", "margin"), "outline", ("outline", "image")]
)
def test_a_bad_feature_is_named_as_a_bad_pixel_is(bad: float, output: str | tuple[str, ...]) -> None:
    kept, head = kept_features(), head_of_features()
    with torch.no_grad():
        head[0].weight[:, 3] = head[0].weight[:, 3].abs()  # of -inf a ReLU would make 0
    kept[7, 3, 2, 2] = bad
    with pytest.raises(ValueError, match="NaN or infinity in the pixels of image 7;"):
        embed_pool(head, kept, output=output, batch_size=4, progress=False)
    found = embed_pool(head, kept, output=output, batch_size=4, on_nan="skip", progress=False)
    assert found.ids == (*range(7), *range(8, N))


def test_a_head_that_overflows_is_told_from_a_bad_feature() -> None:
    head, kept = head_of_features(), kept_features()
    layer = LastLayer.find(head, kept[:1].float())
    with torch.no_grad():
        head[0].weight.mul_(1e30)
        head[2].weight.mul_(1e30)
    with pytest.raises(ValueError, match="the pixels are finite but the model makes a NaN"):
        embed_pool(head, kept, batch_size=4, last_layer=layer, progress=False)


@pytest.mark.parametrize(
    ("positions", "views", "copies"),
    [
        (range(30), [12, 12, 6], []),
        (range(1, 30, 3), [10], []),
        ([4], [1], []),
        ([*range(5), *range(6, 30)], [5, 7, 12, 5], []),
        ([*range(8), *range(9, 17), 20, 22], [8, 4], [6]),
        ([0, 1, 3, 4, 6, 7], [], [6]),
    ],
)
def test_a_pool_that_gives_views_of_its_images(positions: Sequence[int], views: list[int], copies: list[int]) -> None:
    """Where they are evenly spaced, or nearly; the rows are those of images that are copied."""
    kept, head = kept_features(30), head_of_features()
    ids = [f"frame_{i}" for i in range(30)]
    expected = embed_pool(head, FramePool(ids, kept.__getitem__), progress=False)
    subset = Frames(FramePool(ids, kept.__getitem__, kept), positions)
    found = embed_pool(head, subset, batch_size=12, progress=False)
    assert found.ids == tuple(ids[at] for at in positions)
    assert torch.equal(found.values, expected.values[list(positions)])
    batches = list(Source(subset, 0, 1, 12).batches())
    assert [id for batch in batches for id in batch.ids] == list(found.ids)
    memory = kept.untyped_storage().data_ptr()
    shared = [batch.images.untyped_storage().data_ptr() == memory for batch in batches]
    sizes = [len(batch.images) for batch in batches]
    assert [size for size, is_view in zip(sizes, shared, strict=True) if is_view] == views
    assert [size for size, is_view in zip(sizes, shared, strict=True) if not is_view] == copies


MEMORY_PROGRAM = """
import sys
import torch
from alges_fast import embed_pool

def anonymous():
    line = next(line for line in open("/proc/self/status") if line.startswith("RssAnon"))
    return int(line.split()[1]) / 1024

torch.set_num_threads(1)
model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 1), torch.nn.ReLU(), torch.nn.Conv2d(8, 8, 1))
images = torch.zeros(1, 3, 256, 256, dtype=torch.uint8).expand(1280, 3, 256, 256)
embed_pool(model, images[:32], output="semantic_vector", progress=False)
before = anonymous()
embed_pool(model, images, output="semantic_vector", progress=False)
print(anonymous() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="memory as Linux tells it")
def test_memory_does_not_grow_with_the_pool() -> None:
    """A batch takes the place of the one before: rows that are kept do not lie in it."""
    done = subprocess.run([sys.executable, "-c", MEMORY_PROGRAM], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 60
