"""A backbone of a user's own, run over a pool once: the maps are a pool, and a head over them is the model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from alges_fast import embed_pool, frozen_features, select
from alges_fast.pool import CannotContinue
from alges_fast.strategies import Query, get_strategy

Pool = list[tuple[str, Tensor]]


def backbone(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 6, 4, stride=4), nn.BatchNorm2d(6), nn.Tanh()).train()


@pytest.fixture
def pool() -> Pool:
    images = torch.rand(11, 3, 16, 24, generator=torch.Generator().manual_seed(1))
    return [(f"frame{i}", image) for i, image in enumerate(images)]


def test_maps_are_the_backbones_in_eval_mode_and_it_is_left_as_it_was(pool: Pool) -> None:
    trunk = backbone()
    before = {name: value.clone() for name, value in trunk.state_dict().items()}
    found = frozen_features(trunk, pool, batch_size=4, progress=False)
    assert trunk.training
    torch.testing.assert_close(trunk.state_dict(), before, rtol=0, atol=0)
    assert found.ids == tuple(id for id, _ in pool)
    expected = trunk.eval()(torch.stack([image for _, image in pool])).half()
    torch.testing.assert_close(found.values, expected, rtol=2e-3, atol=1e-4)
    assert found[3][0] == "frame3"
    torch.testing.assert_close(found[3][1], found.values[3], rtol=0, atol=0)


def test_a_head_over_the_maps_embeds_as_the_whole_model_does(pool: Pool) -> None:
    trunk, head = backbone().eval(), nn.Sequential(nn.Conv2d(6, 5, 1), nn.ReLU(), nn.Conv2d(5, 3, 1))
    maps = frozen_features(trunk, pool, dtype=torch.float32, progress=False)
    split = embed_pool(head, maps, output=("image", "semantic"), progress=False)
    whole = embed_pool(nn.Sequential(trunk, head), pool, output=("image", "semantic"), progress=False)
    assert split.ids == whole.ids
    for name, values in whole.outputs.items():
        torch.testing.assert_close(split.outputs[name], values, rtol=1e-5, atol=1e-6)
    assert select(head, maps, 4, progress=False).ids == select(nn.Sequential(trunk, head), pool, 4, progress=False).ids


@pytest.mark.parametrize("strategy", ["typical", "herding"])
def test_before_there_is_a_head_the_maps_tell_frames_apart(strategy: str, pool: Pool) -> None:
    maps = frozen_features(backbone(), pool, progress=False)
    found = select(None, pool, 4, strategy=strategy, features=maps, progress=False).ids
    query = Query(candidates=maps.ids, pool=pool, features=maps)
    assert list(found) == list(get_strategy(strategy)().rate(query).draw(4, ()))
    with pytest.raises(ValueError, match="features: there is no trained model, so this strategy needs maps"):
        select(None, pool, 4, strategy=strategy, progress=False)


def test_a_killed_pass_goes_on_to_the_same_file_and_a_whole_one_is_read(pool: Pool, tmp_path: Path) -> None:
    trunk = backbone()
    whole = frozen_features(trunk, pool, batch_size=2, out=tmp_path / "whole.npy", progress=False)

    def stop(done: int, total: int | None) -> None:
        if done >= 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        frozen_features(trunk, pool, batch_size=2, out=tmp_path / "maps.npy", progress=stop)
    seen: list[int] = []
    handle = trunk.register_forward_hook(lambda _, images, output: seen.append(len(images[0])))
    found = frozen_features(trunk, pool, batch_size=2, out=tmp_path / "maps.npy", resume=True, progress=False)
    assert 0 < sum(seen) < len(pool)
    assert (tmp_path / "maps.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
    seen.clear()
    again = frozen_features(trunk, pool, batch_size=2, out=tmp_path / "maps.npy", resume=True, progress=False)
    assert seen == []
    for maps in (found, again):
        assert maps.values.dtype == torch.float16
        torch.testing.assert_close(maps.values, whole.values, rtol=0, atol=0)
    handle.remove()
    with pytest.raises(CannotContinue, match="trunk"):
        frozen_features(backbone(1), pool, batch_size=2, out=tmp_path / "maps.npy", resume=True, progress=False)


def test_a_function_will_do_and_what_is_no_map_is_refused(pool: Pool) -> None:
    module = backbone().eval()
    found = frozen_features(lambda images: module(images)[:, :2], pool, progress=False)
    assert found.values.shape == (11, 2, 4, 6)
    with pytest.raises(TypeError, match=r"trunk: must return maps .*returned shape \(11, 144\)"):
        frozen_features(lambda images: module(images).flatten(1), pool, progress=False)
    with pytest.raises(TypeError, match="returned a list"):
        frozen_features(lambda images: [module(images)], pool, progress=False)  # type: ignore[arg-type, return-value]
    with pytest.raises(ValueError, match="frame0"):
        frozen_features(lambda images: module(images) / 0, pool, progress=False)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        frozen_features(module, pool, batch_size=0)
