"""A project whose features are kept in 8 bits goes through its rounds as another does."""

from __future__ import annotations

from pathlib import Path

import pytest

from alges_fast.project.cli import main
from tests.project.annotators import CLASSES, small_pool


def test_rounds_over_features_in_8_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ALGES_FAST_CACHE", str(tmp_path / "cache"))
    annotator = small_pool(tmp_path / "pool", 2, 6)
    begin = ["new", "p", "--images", "pool", "--classes", ",".join(CLASSES), "--image_size", "64"]
    assert main([*begin, "--feature_bits", "7"]) == 2
    assert "--feature_bits is 7: give 8 or 16" in capsys.readouterr().err
    assert main([*begin, "--feature_bits", "8"]) == 0
    assert main(["next", "p", "-n", "5"]) == 0
    annotator.cvat(Path("p/rounds/000/picks.csv"), Path("a.xml"))
    assert main(["import", "p", "a.xml"]) == 0
    assert main(["train", "p"]) == 0
    assert main(["next", "p", "-n", "1", "--regions", "2x3", "--strategy", "alges-effort"]) == 0
    assert len(annotator.frames(Path("p/rounds/001/picks.csv"))) > 0
    (features,) = Path("cache").glob("features-*/*.rows")
    assert features.name == "codes.rows"
