"""Features kept in 8 bits: what is read is near what was made, by one door, whole or gone on with."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch

from alges_fast import cached_rows
from alges_fast.models import features_cache
from alges_fast.models.coded_maps import CodedMaps, code_maps, coded_bytes
from alges_fast.models.features_cache import FrozenEncoder, load_or_fit, mean_features
from alges_fast.models.frozen import PLAIN

from .small_trunk import small_trunk

FRAMES = np.random.default_rng(0).integers(0, 256, (9, 3, 32, 32), dtype=np.uint8)


def maps(n: int = 5, channels: int = 7) -> torch.Tensor:
    """Channels of very different sizes; one that is the same everywhere, one that is far from 0."""
    made = torch.randn(n, channels, 6, 9, generator=torch.Generator().manual_seed(0))
    made *= torch.logspace(-4, 3, channels).view(1, -1, 1, 1) * torch.arange(1, n + 1).view(-1, 1, 1, 1)
    made[:, 2] = 3.25
    made[:, 3] += 1000
    return made


def test_no_number_is_off_by_more_than_half_a_step_of_its_channel_and_frame() -> None:
    made = maps()
    rows = code_maps(made)
    kept = CodedMaps(rows, 7, (6, 9))
    assert rows.shape == (5, coded_bytes(7, (6, 9)))
    assert kept.shape == made.shape
    flat = made.flatten(2)
    step = (flat.amax(2) - flat.amin(2)) / 255
    rounding = 2.0**-11 * made.abs()  # of float16
    off = (torch.from_numpy(kept[:]).float() - made).abs()
    assert (off <= 0.501 * step[..., None, None] + rounding + 1e-7).all()
    assert (kept[:][:, 2] == 3.25).all()


@pytest.mark.parametrize("index", [2, -1, slice(1, 4), slice(None, None, 2), [4, 0, 0], np.array([1, 3])])
def test_they_are_indexed_as_an_array_is(index: object) -> None:
    kept = CodedMaps(code_maps(maps()), 7, (6, 9))
    whole = kept[:]
    np.testing.assert_array_equal(kept[index], whole[index])  # type: ignore[index]
    assert kept[index].dtype == kept.dtype == np.float16
    assert (len(kept), kept.ndim, kept.nbytes) == (5, 4, 5 * coded_bytes(7, (6, 9)))


def test_they_are_half_the_bytes_beside_the_others_and_gone_on_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features_cache, "CPU_PIXELS", 2 * 32 * 32)  # two frames at a time
    of = {bits: load_or_fit(small_trunk(), FRAMES, view=PLAIN, bits=bits, cache_dir=tmp_path) for bits in (8, 16)}
    assert torch.equal(of[8].projection.weight, of[16].projection.weight)
    exact = of[16].cached(FRAMES)
    kept = of[8].cached(FRAMES)
    assert isinstance(kept, CodedMaps)
    assert kept.nbytes < 0.6 * exact.nbytes
    spread = exact.max((2, 3), keepdims=True) - exact.min((2, 3), keepdims=True)  # type: ignore[union-attr]
    assert (np.abs(kept[:] - exact[:]) <= spread / 400).all()
    np.testing.assert_allclose(mean_features(kept), np.asarray(exact, np.float32).mean((2, 3)), atol=0.02)
    (file,) = tmp_path.glob("features-*/codes.rows")
    before = file.read_bytes()
    draft = file.parent.with_name(f"{file.parent.name}.draft")
    file.parent.rename(draft)
    (draft / "index.json").unlink()
    (draft / "codes.rows").write_bytes(before[: len(before) // 2])  # as a kill leaves it
    made: list[int] = []
    of[8].cached(FRAMES, lambda what, done, total: made.append(done) if what == "encoding frames" else None)
    assert file.read_bytes() == before
    assert made == [4, 6, 8, 9]


def test_what_features_take_is_said_before_they_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = load_or_fit(small_trunk(), FRAMES, view=PLAIN, bits=8, cache_dir=tmp_path)
    monkeypatch.setattr(cached_rows, "WORTH_SAYING", 1000)
    monkeypatch.setattr(FrozenEncoder, "__call__", _stop)
    with caplog.at_level(logging.INFO), pytest.raises(RuntimeError, match="stop"):
        made.cached(FRAMES)
    assert "features take 5 kB a frame, 0.0 GB for 9 frames" in caplog.text


def _stop(*given: object) -> None:
    raise RuntimeError("stop")
