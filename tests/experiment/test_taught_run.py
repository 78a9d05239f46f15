"""`run --steps --teacher frozen`: whole frames in part labelled, taught, resumed; and what cannot be."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from alges_fast.experiment.state import RoundFolder
from alges_fast.run import main

COMMAND = [
    *("--dataset", "folder", "--ignore_index", "11", "--image_size", "64", "--rounds", "2", "--init_size", "2"),
    *("--query_size", "1", "--strategies", "random@3x3", "--steps", "3", "--batch_size", "2", "--device", "cpu"),
    *("--architecture", "linknet", "--encoder", "tu-mobilenetv4_conv_small_050", "--teacher", "frozen"),
    *("--head_steps", "20", "--keep_models", "true"),
]


@pytest.fixture(scope="module")
def command(root: Path) -> list[str]:
    return [*COMMAND, "--data_root", str(root)]


def model(out: Path, round: int) -> bytes:
    return (RoundFolder.of(out, "random@3x3", 0, round).path / "model.safetensors").read_bytes()


def test_a_taught_run_resumes_at_a_round_and_ends_with_the_same_weights(command: list[str], tmp_path: Path) -> None:
    whole, resumed, alone = tmp_path / "whole", tmp_path / "resumed", tmp_path / "alone"
    assert main([*command, "--out", str(whole)]) == 0
    shutil.copytree(whole, resumed)
    shutil.rmtree(RoundFolder.of(resumed, "random@3x3", 0, 1).path)
    assert main([*command, "--out", str(resumed)]) == 0
    assert model(whole, 1) == model(resumed, 1) != model(whole, 0)
    assert main([*command, "--teacher", "none", "--out", str(alone)]) == 0
    assert model(alone, 0) != model(whole, 0)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--epochs", "2"], "--steps and --epochs are two budgets of one training: give one of them"),
        (["--strategies", "deal"], "--teacher frozen: strategy deal has a loss of its own"),
        (["--augment", "rotate"], "--augment rotate is unknown: use flip, scale, colour"),
        (["--architecture", "frozen", "--encoder", "tu-tf_efficientnet_lite0"], "--teacher is for another network"),
    ],
)
def test_what_cannot_be(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], says: str
) -> None:
    assert main([*command, *flags, "--out", str(tmp_path / "out")]) == 2
    assert says in capsys.readouterr().err
