"""A project whose features are kept in 8 bits goes through its rounds as another does."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.project.annotators import begin, refused, run, small_pool


def test_rounds_over_features_in_8_bits(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ALGES_FAST_CACHE", "cache")
    annotator = small_pool(here / "pool", 2, 6)
    given = ["new", "p", "--images", "pool", "--classes", "a,b"]
    assert "--feature_bits is 7: give 8 or 16" in refused(capsys, *given, "--feature_bits", "7")
    begin("p", "--feature_bits", "8")
    run("next", "p", "-n", "5")
    annotator.answer(0)
    run("next", "p", "-n", "1", "--regions", "2x3", "--strategy", "alges-effort")
    assert len(annotator.frames(Path("p/rounds/001/picks.csv"))) > 0
    (features,) = Path("cache").glob("features-*/*.rows")
    assert features.name == "codes.rows"
