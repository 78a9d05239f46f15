"""The same pool, model, labels and seed give the same picks in `run`, `select` and `project`, by every strategy."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from data.trees import save
from safetensors.torch import save_model

from alges_fast.annotation.picks import Pick
from alges_fast.experiment import initial_pool, loop
from alges_fast.experiment.config import RunConfig
from alges_fast.experiment.setting import Monitor, Round
from alges_fast.project import choosing, selecting
from alges_fast.project.cli import main as project
from alges_fast.strategies import get_strategy, strategy_names

FRAMES, LABELLED, CLASSES, SIZE = 18, 4, ("wall", "organ", "tool"), 64
OWN = """
from alges_fast.seeding import kmeans_plusplus
from alges_fast.strategies import Strategy, by_seeding
from alges_fast.strategies.embedding import embed

class Own(Strategy):
    name, reference = "own", "-"

    def rate(self, query):
        found = embed(query, ("feature_sum",))
        return by_seeding(query, found.outputs["feature_sum"], found.positions, kmeans_plusplus)
"""
MODELS = """
from pathlib import Path

import torch

from alges_fast.models import build_model
from alges_fast.models.deal import DealModel
from safetensors.torch import load_model

def of(curve, deal):
    model = build_model("linknet", "mobilenet_v2", num_classes=3, head_kernel=1, seed=0)
    model = DealModel(model, 3, 0) if deal else model
    load_model(model, Path(__file__).parent / f"{curve}.safetensors")
    return model
"""
STRATEGIES = [name for name in strategy_names() if not get_strategy(name).takes_whole_pool]
CURVES = [f"{name}{grid}" for name in [*STRATEGIES, "own"] for grid in ("", "@4x2")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A data set of three videos, the same as a pool with four labelled frames, and a run's first round of choosing."""
    root = tmp_path_factory.mktemp("road")
    generator = np.random.default_rng(0)
    names = [f"v{number // 6}_{number % 6}" for number in range(FRAMES)]
    for split, n in (("train", FRAMES), ("val", 1), ("test", 1)):
        for number in range(n):
            coarse = generator.integers(0, 3, (4, 4))
            mask = np.kron(coarse, np.ones((SIZE // 4, SIZE // 4))).astype(np.uint8)
            noise = generator.integers(0, 20 + 9 * number, (SIZE, SIZE, 3))
            image = (50 * mask[..., None] + noise // 2).astype(np.uint8)
            save(root / "data" / split / "images" / f"{names[number]}.png", image)
            save(root / "data" / split / "masks" / f"{names[number]}.png", mask)
    (root / "data" / "classes.txt").write_text("\n".join(CLASSES))
    (root / "mine.py").write_text(OWN)
    functions = [f"def m{at}():\n    return of({curve!r}, {'deal' in curve})\n" for at, curve in enumerate(CURVES)]
    (root / "models_of_the_run.py").write_text(MODELS + "\n".join(functions))
    labelled = [names[at] for at in initial_pool(FRAMES, LABELLED, 1)]
    (root / "labelled.txt").write_text("\n".join(f"{name}.png" for name in labelled))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.syspath_prepend(str(root))
        patch.setenv("ALGES_FAST_CACHE", str(root / "cache"))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        _choose_as_run()
        assert project(
            ["new", "p", "--images", "data/train/images", "--classes", ",".join(CLASSES), "--seed", "1",
             "--image_size", str(SIZE)]
        ) == 0  # fmt: skip
        for name in labelled:
            mask = root / "masks" / f"{name}.png.png"
            mask.parent.mkdir(exist_ok=True)
            mask.write_bytes((root / "data/train/masks" / f"{name}.png").read_bytes())
        assert project(["import", "p", "masks"]) == 0
        yield root
        torch.set_num_threads(threads)
        sys.modules.pop("models_of_the_run", None)


def _choose_as_run() -> None:
    """The first query of every curve, of a network that is not trained, which is all the same to it."""
    config = RunConfig(
        preset="none",
        dataset="folder",
        data_root="data",
        image_size=SIZE,
        architecture="linknet",
        encoder="mobilenet_v2",
        device="cpu",
        rounds=6,
        init_size=LABELLED,
        query_size=2,
        strategies=(*STRATEGIES, "mine.py:Own"),
        regions=("none", "4x2"),
    )
    setting = loop._prepare(config, Monitor())
    for curve in setting.curves:
        round = Round(setting, curve, 1, 0, setting.labelled_first(curve, 1))
        model = round.new_model().eval().requires_grad_(False)
        Path(f"{curve.name}.json").write_text(json.dumps(loop._query(round, model)["ids"]))
        save_model(model, f"{curve.name}.safetensors")


def of_run(root: Path, curve: str) -> list[str]:
    """As `run` chose, by the names of files in the pool."""
    ids: list[str] = json.loads((root / f"{curve}.json").read_text())
    return [re.sub(r"^train/([^#]*)", r"\1.png", id) for id in ids]


@pytest.fixture
def written(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The picks of rounds, in the place of their pages and pictures."""
    rounds: list[list[str]] = []

    def write_round(
        out: Path, asked: object, classes: object, picks: Sequence[Pick], *rest: object, **more: object
    ) -> bool:
        rounds.append([pick.id for pick in picks])
        return True

    monkeypatch.setattr(choosing, "write_round", write_round)
    return rounds


@pytest.mark.parametrize("curve", CURVES)
def test_one_road(folder: Path, written: list[list[str]], curve: str) -> None:
    strategy, _, grid = curve.partition("@")
    asked = ["--strategy", "mine.py:Own" if strategy == "own" else strategy, "--min_gap", "0"]
    asked += ["--model", f"models_of_the_run:m{CURVES.index(curve)}", *(["--regions", grid] if grid else [])]
    assert project(["next", "p", "-n", "2", *asked]) == 0
    expected = of_run(folder, curve)
    assert len(expected) == (16 if grid else 2)
    assert written == [expected]
    if strategy != "balanced-entropy":  # a list of labelled frames does not say what their masks hold
        fixed = ["--images", "data/train/images", "--n", "2", "--seed", "1", "--image_size", str(SIZE)]
        fixed += ["--device", "cpu", "--labelled", "labelled.txt", "--out", f"select/{curve}"]
        assert selecting.main([*fixed, *asked]) == 0
        assert written[1] == expected
