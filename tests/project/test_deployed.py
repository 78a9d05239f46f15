"""The model that goes out predicts what the project's model predicts."""

from __future__ import annotations

import importlib.util
import resource
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from alges_fast.annotation.sources import LeftOut, list_frames
from alges_fast.errors import UserError
from alges_fast.models import FROZEN, TUNED, saved
from alges_fast.models.frozen import FrozenModel
from alges_fast.project import model_files, network
from alges_fast.project.config import ProjectConfig
from alges_fast.project.pool import ProjectPool, decoded
from alges_fast.training.config import TrainConfig
from alges_fast.training.learner import TunedEncoder, WholeNetwork


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A project with a head of random weights, and twelve pictures for its pool."""
    config = ProjectConfig("pool", ("a", "b", "c"), image_size=64)
    project: Any = SimpleNamespace(config=config, root=tmp_path, models=[])
    (tmp_path / "pool").mkdir()
    for number, picture in enumerate(np.random.default_rng(0).integers(0, 256, (12, 90, 160, 3)).astype(np.uint8)):
        Image.fromarray(picture).save(tmp_path / "pool" / f"{number:02}.png")
    pool = ProjectPool(list_frames(tmp_path / "pool"), LeftOut("stop"), tmp_path)
    monkeypatch.setattr(model_files, "list_pool", lambda project: pool)
    monkeypatch.setenv("ALGES_FAST_CACHE", str(tmp_path / "cache"))
    frozen = network.frozen(project, pool.frames, decoded(pool, 64)[1])
    learner = network.learner_of(project, frozen.encoder)
    network.save(tmp_path, learner.new_network(3, 0), learner.card(config.classes))
    project.models = [SimpleNamespace(number=0, folder=tmp_path)]
    return project


@pytest.mark.parametrize("architecture", [FROZEN, TUNED, "unet"])
def test_files_predict_what_the_model_does(trained: Any, tmp_path: Path, architecture: str) -> None:
    side = None
    if architecture == TUNED:
        frozen = network.frozen(trained, (pool := model_files.list_pool(trained)).frames, decoded(pool, 64)[1])
        tuned = TunedEncoder(TrainConfig(64, TUNED), network.learner_of(trained, frozen.encoder), frozen.maps.values)
        network.save(tmp_path, tuned.new_network(3, 0), tuned.card(trained.config.classes))
    elif architecture != FROZEN:
        side, settings = 64, TrainConfig(64, architecture, "tu-mobilenetv4_conv_small_050")
        learner = WholeNetwork(settings, 3)
        network.save(tmp_path, learner.new_network(3, 0), learner.card(trained.config.classes))
    written = model_files.export_model(trained, tmp_path / "out")
    has_onnx = importlib.util.find_spec("onnx") is not None and importlib.util.find_spec("onnxscript") is not None
    assert [path.name for path in written] == ["model.pt2", "model.onnx"][: 1 + has_onnx]
    program = torch.export.load(tmp_path / "out" / "model.pt2").module()
    assert program(torch.rand(3, 3, 64, 64)).shape == (3, 3, 64, 64)  # any number of frames at a time
    frames = torch.rand(1, 3, 90, 160)  # as large as a user has them
    own = model_files.Deployed(*network.load_whole(trained.models[0], "packaged"), side)
    with torch.no_grad():
        torch.testing.assert_close(program(frames), own(frames), rtol=1e-3, atol=1e-3)


def test_a_projects_weights_say_what_they_are(trained: Any, tmp_path: Path) -> None:
    """As `select --model` reads them: with no other flag, and to the network that the project has."""
    card = saved.read_card(tmp_path / network.WEIGHTS)
    assert (card.architecture, card.image_size, card.classes) == ("frozen", 64, ("a", "b", "c"))
    trunk = network.trunk_of(trained)
    own = FrozenModel(trunk, network.load_head(trained, trained.models[0], trunk), card.image_size)
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(saved.load(tmp_path / network.WEIGHTS, card)(images), own(images))


def test_a_file_that_predicts_otherwise_is_not_written(
    trained: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_files, "SAME", 1.1)
    with pytest.raises(
        UserError, match=r"model\.pt2: predicts another class than the model in 0\.00 % of the pixels of 10"
    ):
        model_files.export_model(trained, tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_a_full_disk_is_one_line(trained: Any, tmp_path: Path) -> None:
    """Where torch writes the file itself it ends the process. Here: no file grows beyond 20 kB."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(UserError, match=r"model\.pt2 cannot be written \(File too large\)"):
            model_files.export_model(trained, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert list((tmp_path / "out").iterdir()) == []
