"""A project whose steps are killed at any instant and run again is the project of steps that never were."""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from pathlib import Path

import pytest

from tests.project.annotators import CLASSES, contents, small_pool

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["alges_fast.project.cli", "segmentation_models_pytorch", "tests.project.annotators"])

STEPS = (
    ("new", "p", "--images", "../pool", "--classes", ",".join(CLASSES), "--image_size", "64", "--feature_bits", "8"),
    ("next", "p", "-n", "10"),
    ("next", "p", "-n", "10", "--reject", "no.txt"),
    ("import", "p", "0.xml"),
    ("train", "p"),
    ("next", "p", "-n", "1", "--regions", "2x3", "--consider", "1", "--thin", "0.01"),
    ("import", "p", "1.xml", "--accept_untouched"),
    ("train", "p"),
    ("export", "p"),
    ("status", "p"),
)


def all_steps(folder: str, cache: str) -> None:
    """Go on with the step that `at` names; an annotator answers whatever is out."""
    import torch

    from alges_fast.project.cli import main

    os.chdir(folder)
    os.environ["ALGES_FAST_CACHE"] = cache
    torch.set_num_threads(1)
    annotator = small_pool(Path("truth"), 4, 3)
    at = Path("at")
    for number in range(int(at.read_text()) if at.exists() else 0, len(STEPS)):
        step = STEPS[number]
        if step[0] == "import":
            export = Path(step[2])
            annotator.cvat(Path("p/rounds") / f"{int(export.stem):03d}" / "picks.csv", export)
        if "--reject" in step and not Path("no.txt").exists():
            picks = Path("p/rounds/000/picks.csv").read_text(encoding="utf-8").splitlines()
            Path("no.draft").write_text(picks[1].split(",")[1] + "\n")
            Path("no.draft").replace("no.txt")
        if main(list(step)) != 0:
            os._exit(1)
        at.with_suffix(".draft").write_text(str(number + 1))
        at.with_suffix(".draft").replace(at)
    os._exit(0)


def run(folder: Path, cache: Path, seconds: float | None = None) -> int | None:
    """The exit code; None where the process was killed after so many seconds."""
    process = CONTEXT.Process(target=all_steps, args=(str(folder), str(cache)), daemon=True)
    process.start()
    process.join(seconds if seconds is not None else 600)
    if process.exitcode is None:
        process.kill()
        process.join()
        return None
    return process.exitcode


@pytest.mark.parametrize("n_kills", [3, pytest.param(20, marks=[pytest.mark.slow, pytest.mark.timeout(3600)])])
def test_kills_at_random_instants_leave_the_same_project(tmp_path: Path, n_kills: int) -> None:
    small_pool(tmp_path / "pool", 4, 3)
    (tmp_path / "whole").mkdir()
    began = time.monotonic()
    assert run(tmp_path / "whole", tmp_path / "cache") == 0
    whole = time.monotonic() - began
    expected = contents(tmp_path / "whole" / "p")
    seed = random.randrange(2**32)
    generator, killed = random.Random(seed), 0
    for attempt in range(40 * n_kills):
        folder = tmp_path / f"killed{attempt}"
        folder.mkdir()
        while (code := run(folder, tmp_path / "cache", generator.uniform(0.05, 0.6) * whole)) is None:
            killed += 1
            assert killed < 40 * n_kills, f"seed {seed}: never comes to an end"
        assert code == 0, f"seed {seed}"
        found = contents(folder / "p")
        assert found.keys() == expected.keys(), f"seed {seed}"
        changed = [name for name in expected if found[name] != expected[name]]
        assert not changed, f"seed {seed}"
        if killed >= n_kills:
            return
    raise AssertionError(f"only {killed} kills")
