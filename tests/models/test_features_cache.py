"""The features' cache: made once, the same bytes however it came about, never trusted blindly."""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from alges_fast import cached_rows
from alges_fast.errors import UserError
from alges_fast.models import features_cache
from alges_fast.models.features_cache import FrozenEncoder, load_or_fit
from alges_fast.models.frozen import PLAIN, RAISED, features
from tests.commands import CONTEXT, finish

from .small_trunk import small_trunk

TWO_FRAMES = 2 * 32 * 32


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features_cache, "CPU_PIXELS", TWO_FRAMES)


@pytest.fixture(scope="module")
def frames() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (9, 3, 32, 32), dtype=np.uint8)


def encoder(cache: Path, frames: np.ndarray, seed: int = 0) -> FrozenEncoder:
    return load_or_fit(small_trunk(seed), frames, view=PLAIN, cache_dir=cache)


def make_in_a_process(cache: Path, frames: np.ndarray, log: Path, killed_at: int | None) -> None:
    """In its own process: the features, a letter in `log` for every batch; SIGKILL instead of batch `killed_at`."""
    torch.set_num_threads(1)
    features_cache.CPU_PIXELS = TWO_FRAMES
    original = FrozenEncoder.__call__
    made: list[int] = []

    def logged(self: FrozenEncoder, images: torch.Tensor) -> torch.Tensor:
        if len(made) == killed_at:
            os.kill(os.getpid(), signal.SIGKILL)
        made.append(len(images))
        with log.open("a") as file:
            file.write("x")
        return original(self, images)

    FrozenEncoder.__call__ = logged  # type: ignore[method-assign]
    encoder(cache, frames).cached(frames)


def data_file(cache: Path) -> Path:
    (path,) = cache.glob("features-*/features.rows")
    return path


def test_made_once_mapped_and_what_the_model_would_make(tmp_path: Path, frames: np.ndarray) -> None:
    made = encoder(tmp_path, frames)
    kept = made.cached(frames)
    assert (kept.shape, kept.dtype) == ((9, 64, 8, 8), np.float16)
    before = data_file(tmp_path).read_bytes()
    torch.from_numpy(made.cached(frames)).fill_(7)
    assert data_file(tmp_path).read_bytes() == before
    assert kept.strides[1] == 2, "a pixel's channels lie together"
    with torch.no_grad():
        whole = features(made.trunk, made.projection, made.trunk.normalisation(torch.from_numpy(frames)))
    np.testing.assert_allclose(kept, whole.numpy(), atol=2e-3 * whole.abs().max().item())
    calls: list[str] = []
    again = encoder(tmp_path, frames).cached(frames, lambda what, done, total: calls.append(what))
    assert calls == []
    np.testing.assert_array_equal(kept, again)


def test_the_encoder_is_shown_what_is_read_again_at_twice_the_size(tmp_path: Path, frames: np.ndarray) -> None:
    """And what is kept are the components, their means around, and where a position is: on the masks' own grid."""
    large = frames.repeat(2, 2).repeat(2, 3)
    large[:, :, ::2] ^= 85  # detail that the small pictures have not
    asked: list[int] = []

    def pictures(positions: Sequence[int], side: int) -> np.ndarray:
        assert side == 64
        asked.extend(positions)
        return large[list(positions)]

    made = load_or_fit(small_trunk(), frames, view=RAISED, pictures=pictures, cache_dir=tmp_path)
    kept = made.cached(frames, pictures=pictures)
    assert set(asked) == set(range(9))
    assert kept.shape == (9, 2 * RAISED.components + 4, 8, 8)
    with torch.no_grad():
        whole = features(made.trunk, made.projection, made.trunk.normalisation(torch.from_numpy(large)))
    np.testing.assert_allclose(kept, whole.numpy(), atol=2e-3 * whole.abs().max().item())
    own, around, place = np.split(kept.astype(np.float32), (32, 64), axis=1)
    np.testing.assert_allclose(around[:, :, 4, 4], own[:, :, 3:6, 3:6].mean((2, 3)), atol=0.05)
    np.testing.assert_allclose(around[:, :, 0, 0], own[:, :, :2, :2].mean((2, 3)), atol=0.05)
    np.testing.assert_allclose(place[3, :, 0, 7], [0.875, -0.875, 0.875**2, 0.875**2], atol=1e-3)
    asked.clear()
    np.testing.assert_array_equal(made.cached(frames, pictures=pictures), kept)
    assert not asked, "nothing is read where features are kept"


def test_components_are_of_the_standardised_channels_and_ordered(tmp_path: Path, frames: np.ndarray) -> None:
    made = encoder(tmp_path, frames)
    kept = made.cached(frames).astype(np.float64).transpose(1, 0, 2, 3).reshape(64, -1)
    assert np.abs(kept.mean(1)).max() < 0.01
    covariance = np.cov(kept)
    variance = np.diag(covariance)
    assert (np.diff(variance) <= 1e-3 * variance[0]).all()
    assert np.abs(covariance - np.diag(variance)).max() < 1e-2 * variance[0]


@pytest.mark.parametrize("killed_at", [0, 1, 3])
def test_killed_and_gone_on_with_gives_the_same_bytes(
    tmp_path: Path, frames: np.ndarray, killed_at: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder(tmp_path / "whole", frames).cached(frames)
    made = encoder(tmp_path / "killed", frames)
    arguments = (tmp_path / "killed", frames, tmp_path / "log", killed_at)
    child = CONTEXT.Process(target=make_in_a_process, args=arguments, daemon=True)
    child.start()
    assert finish(child) == -signal.SIGKILL
    assert not list((tmp_path / "killed").glob("features-*/index.json"))
    batches: list[int] = []
    original = FrozenEncoder.__call__

    def counted(self: FrozenEncoder, images: torch.Tensor) -> torch.Tensor:
        batches.append(len(images))
        return original(self, images)

    monkeypatch.setattr(FrozenEncoder, "__call__", counted)
    made.cached(frames)
    assert batches == [2, 2, 2, 2, 1][killed_at:]
    first, second = data_file(tmp_path / "whole"), data_file(tmp_path / "killed")
    assert first.read_bytes() == second.read_bytes()
    assert sorted(path.name for path in second.parent.iterdir()) == ["features.crc", "features.rows", "index.json"]
    assert (first.parent / "index.json").read_text() == (second.parent / "index.json").read_text()


def test_a_torn_draft_is_cut_back_to_its_whole_batches(tmp_path: Path, frames: np.ndarray) -> None:
    made = encoder(tmp_path, frames)
    made.cached(frames)
    whole = data_file(tmp_path)
    bytes_before = whole.read_bytes()
    draft = whole.parent.with_name(f"{whole.parent.name}.draft")
    whole.parent.rename(draft)
    (draft / "index.json").unlink()
    sums = (draft / "features.crc").read_bytes()
    (draft / "features.crc").write_bytes(sums[: 4 * 6] + b"\x01")
    torn = bytearray(bytes_before[: 5 * len(bytes_before) // 9])  # two whole batches and half of the third
    torn[len(bytes_before) // 3] ^= 255  # in the second
    (draft / "features.rows").write_bytes(torn)
    seen: list[int] = []
    made.cached(frames, lambda what, done, total: seen.append(done))
    assert data_file(tmp_path).read_bytes() == bytes_before
    assert seen == [0, 2, 4, 6, 8, 9], "from the first damaged batch on"


@pytest.mark.parametrize("damage", ["a bit", "shortened", "index of another shape", "no index", "foreign file"])
def test_what_is_damaged_is_named_and_made_again(
    tmp_path: Path, frames: np.ndarray, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    made = encoder(tmp_path, frames)
    made.cached(frames)
    path = data_file(tmp_path)
    before = path.read_bytes()
    index = path.parent / "index.json"
    {
        "a bit": lambda: path.write_bytes(before[:-1] + bytes([before[-1] ^ 1])),
        "shortened": lambda: path.write_bytes(before[:-2]),
        "index of another shape": lambda: index.write_text(index.read_text().replace("9", "8")),
        "no index": index.unlink,
        "foreign file": lambda: (shutil.rmtree(path.parent), path.parent.write_text("what is this")),
    }[damage]()
    with caplog.at_level(logging.WARNING):
        made.cached(frames)
    assert f"{path.parent} are damaged" in caplog.text
    assert data_file(tmp_path).read_bytes() == before


def test_a_damaged_projection_is_named_and_fitted_again(
    tmp_path: Path, frames: np.ndarray, caplog: pytest.LogCaptureFixture
) -> None:
    first = encoder(tmp_path, frames).projection
    (path,) = tmp_path.glob("projection-*.safetensors")
    whole = path.read_bytes()
    for damaged in (whole[:-1] + bytes([whole[-1] ^ 1]), whole[:50]):
        path.write_bytes(damaged)
        with caplog.at_level(logging.WARNING):
            again = encoder(tmp_path, frames).projection
        assert f"{path} is damaged" in caplog.text
        assert torch.equal(first.weight, again.weight)
        assert path.read_bytes() == whole
        caplog.clear()


def test_other_frames_weights_views_or_order_are_other_features(tmp_path: Path, frames: np.ndarray) -> None:
    made = encoder(tmp_path, frames)
    made.cached(frames)
    changed = frames.copy()
    changed[4, 1, 7, 7] ^= 1
    made.cached(changed)
    made.cached(frames[::-1])
    made.cached(frames[:5])
    encoder(tmp_path, frames, seed=1).cached(frames)
    assert load_or_fit(small_trunk(), frames, cache_dir=tmp_path).cached(frames).shape[1] == 68  # raised, not plain
    assert len(list(tmp_path.glob("features-*/index.json"))) == 6


def test_frames_mapped_from_a_cache_are_known_by_the_sums_beside_them(
    tmp_path: Path, frames: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Hours of decoded video are not read once more to be told apart."""

    def make(writer: cached_rows.RowWriter) -> dict[str, str]:
        writer.append("images", frames)
        return {}

    mapped = cached_rows.load_or_make(tmp_path / "frames", make, what="frames").arrays["images"]
    of_frames = cached_rows.content_digest(frames)
    assert cached_rows.content_digest(mapped[1:]) != of_frames
    assert cached_rows.content_digest(mapped[::-1]) == cached_rows.content_digest(frames[::-1])
    monkeypatch.setattr(cached_rows, "_sums", lambda rows: pytest.fail("read"))
    assert cached_rows.content_digest(mapped) == of_frames


def test_processes_share_the_making(tmp_path: Path, frames: np.ndarray) -> None:
    log = tmp_path / "log"
    arguments = (tmp_path / "cache", frames, log, None)
    children = [CONTEXT.Process(target=make_in_a_process, args=arguments, daemon=True) for _ in range(3)]
    for child in children:
        child.start()
    assert [finish(child) for child in children] == [0, 0, 0]
    assert log.read_text() == "x" * 5, "one process made the five batches, the others waited for it"


@pytest.mark.skipif(not hasattr(os, "sysconf"), reason="says how much memory there is")
def test_features_of_more_than_the_memory_are_mapped(tmp_path: Path) -> None:
    """Hours of video: 26 GB for 61 200 frames at 224 pixels."""
    row = 1 << 26
    n = 2 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // row + 1
    place = tmp_path / "rows"
    place.mkdir()
    with (place / "features.rows").open("wb") as file:
        file.truncate(n * row)  # zeros, without blocks on the disk
    np.full(n, zlib.crc32(bytes(row)), "<u4").tofile(place / "features.crc")
    index = {"format": 1, "arrays": {"features": ["|u1", [n, row]]}, "facts": {}}
    (place / "index.json").write_text(json.dumps(index))
    kept = cached_rows.load_or_make(place, lambda _: pytest.fail("made again"), what="features", mode="c")
    assert Path(kept.arrays["features"][:].filename) == place / "features.rows", "whose sums tell its contents"
    features = torch.from_numpy(kept.arrays["features"])
    features[n - 1, 5] = 7
    assert features[n - 1, 4:7].tolist() == [0, 7, 0]
    cached_rows.let_go(kept.arrays["features"])
    assert features[n - 1, 5] == 0, "the file never changes"


def test_too_little_room_a_disk_that_fills_and_a_folder_that_cannot_be_made_are_one_line(
    tmp_path: Path, frames: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = encoder(tmp_path, frames)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10, 10, 1000))
        patch.setattr(FrozenEncoder, "__call__", lambda *_: pytest.fail("made"))
        says = r"features take 8 kB .* 0\.0 GB are free: make room.* ALGES_FAST_CACHE.*--feature_bits 8"
        with pytest.raises(UserError, match=says):
            made.cached(frames)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match="No space left on device"):
        made.cached(frames)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot keep features there"):
        encoder(tmp_path / "file" / "below", frames)
