"""Everything under OUT that a report is made from, read once."""

from __future__ import annotations

import csv
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from alges_fast.errors import UserError
from alges_fast.report.artefacts import (
    DatasetSummary,
    FrameMaps,
    PickRecord,
    load_dataset,
    load_frames,
    load_picks,
    load_thumbnails,
)
from alges_fast.report.style import in_order, parts

RANDOM = "random"
FULL = "full"  # the strategy that labels the whole pool: a line in the figures, not a curve
FRAMES_ONLY = "none"  # in the column `regions`, of runs that choose whole frames
_INTEGERS = ("seed", "round", "n_labelled")
_NAMES = ("strategy", "regions")
_COLUMNS = ("strategy", *_INTEGERS, "dice")
_NOT_CLASSES = ("dice_image", "dice_released")


@dataclass(frozen=True)
class RunFolder:
    """A run as read: rows of results.csv in the strategies' usual order, and whatever else is there.

    A strategy is a curve: where it chose windows, its name in the rows, and everywhere in the report, has the grid
    behind it, such as `random@8x8`.
    """

    out: Path
    rows: Sequence[Mapping[str, Any]]
    config: Mapping[str, Any]
    environment: Mapping[str, Any]
    dataset: DatasetSummary | None
    frames: Sequence[FrameMaps]
    picks: Sequence[PickRecord]
    thumbnails: Mapping[str, npt.NDArray[np.uint8]]

    @property
    def strategies(self) -> list[str]:
        return in_order(row["strategy"] for row in self.rows)

    @property
    def curve_rows(self) -> list[Mapping[str, Any]]:
        """The rows of strategies that have a learning curve."""
        return [row for row in self.rows if row["strategy"] != FULL]

    @property
    def compared_rows(self) -> list[Mapping[str, Any]]:
        """Those with no more labelled than `rounds` gives every strategy: random may have more, to read savings off."""
        rounds, (step, _) = self.config.get("rounds"), self._steps
        last = (rounds - 1) * step if isinstance(rounds, int) else math.inf
        return [row for row in self.curve_rows if self._drawn(row) <= last]

    @property
    def shared_rows(self) -> list[Mapping[str, Any]]:
        """Of these, those where random, which may take larger steps, has a training too."""
        rows, (_, random_step) = self.compared_rows, self._steps
        has_random = any(_is_random(row["strategy"]) for row in rows)
        return [row for row in rows if not has_random or self._drawn(row) % random_step == 0]

    @property
    def _steps(self) -> tuple[int, int]:
        """Images chosen after a training, by the strategies and by random."""
        step = self.config.get("query_size") or 1
        return step, self.config.get("random_query_size") or step

    def _drawn(self, row: Mapping[str, Any]) -> int:
        """Images chosen before this training, or as many images' pixels."""
        drawn: int = row["round"] * self._steps[_is_random(row["strategy"])]
        return drawn

    @property
    def full_rows(self) -> list[Mapping[str, Any]]:
        return [row for row in self.rows if row["strategy"] == FULL]

    @property
    def seeds(self) -> list[int]:
        return sorted({row["seed"] for row in self.rows})

    @property
    def windows(self) -> bool:
        """Whether any strategy chose windows of frames."""
        return any("@" in name for name in self.strategies)

    @property
    def class_columns(self) -> list[str]:
        """Names of the classes that results.csv has a Dice for, in its order."""
        columns = self.rows[0].keys()
        return [c.removeprefix("dice_") for c in columns if c.startswith("dice_") and c not in _NOT_CLASSES]

    @property
    def title(self) -> str:
        """The data set's name, or the name of its folder where the data set is just a folder."""
        name = self.dataset.name if self.dataset else self.config.get("dataset")
        if name == "folder" and self.config.get("data_root"):
            name = Path(self.config["data_root"]).name
        return str(name) if name else self.out.resolve().name

    @property
    def pool_size(self) -> int | None:
        return self.dataset.frames.get("train") if self.dataset else None

    def missing(self) -> list[str]:
        """What the run lacks, one phrase each: how many of the configured runs (a strategy with a seed) have not
        finished a training, and which have fewer than the longest or the configured number.
        """
        trained = Counter((row["strategy"], row["seed"]) for row in self.compared_rows)
        if not trained:
            return []
        configured = self.config.get("rounds")
        longest = [n for (name, _), n in trained.items() if not _is_random(name)] or [*trained.values()]
        wanted = max(configured if isinstance(configured, int) else 0, *longest)
        step, random_step = self._steps
        of_random = (wanted - 1) * step // random_step + 1  # up to as many labelled
        # By number, not by name: the configuration names a user's own strategy by its file.
        grids = len(self.config.get("regions") or (FRAMES_ONLY,))
        curves = sum(1 if name == FULL or "@" in name else grids for name in self.config.get("strategies") or ())
        planned = curves * len(self.config.get("seeds") or ())
        begun = len({(row["strategy"], row["seed"]) for row in self.rows})
        waiting = [f"{planned - begun} of {planned} strategies with a seed have no training yet"]
        short = [
            f"{strategy} with seed {seed} has {trainings} of {needed} trainings"
            for (strategy, seed), trainings in trained.items()
            if trainings < (needed := of_random if _is_random(strategy) else wanted)
        ]
        return (waiting if begun < planned else []) + short


def read_run(out: Path) -> RunFolder:
    """Read a finished or unfinished run.

    Raises:
        UserError: there is no results.csv in it, or it holds no row, or not the columns of one.
    """
    return RunFolder(
        out=out,
        rows=read_results(out / "results.csv"),
        config=_mapping(yaml.safe_load, out / "config.yaml"),
        environment=_mapping(json.loads, out / "environment.json"),
        dataset=load_dataset(out),
        frames=load_frames(out),
        picks=load_picks(out),
        thumbnails=load_thumbnails(out),
    )


def read_results(path: Path) -> list[dict[str, Any]]:
    """Rows of a results.csv sorted by strategy, seed and round; empty cells are NaN.

    Raises:
        UserError: the file is missing, is empty, lacks a column, or holds what is not a number.
    """
    if not path.is_file():
        raise UserError(f"no results at {path}: give the --out folder of a run that has finished at least one training")
    with path.open(newline="") as file:
        reader = csv.DictReader(file)
        if lacking := [name for name in _COLUMNS if name not in (reader.fieldnames or ())]:
            raise UserError(f"{path} lacks the column {lacking[0]}: it is not the results.csv of a run")
        rows = [_parse(row, path, line) for line, row in enumerate(reader, start=2)]
    if not rows:
        raise UserError(f"{path} has no rows yet: wait until the run has finished at least one training")
    rows = [{**row, "strategy": curve_name(row)} for row in rows]
    place = {name: i for i, name in enumerate(in_order(row["strategy"] for row in rows))}
    return sorted(rows, key=lambda row: (place[row["strategy"]], row["seed"], row["round"]))


def curve_name(row: Mapping[str, Any]) -> str:
    """What a row's strategy is called beside the same one with other windows: `random`, `random@8x8`."""
    grid = row.get("regions") or FRAMES_ONLY
    return str(row["strategy"]) if grid == FRAMES_ONLY else f"{row['strategy']}@{grid}"


def _is_random(curve: str) -> bool:
    return parts(curve)[0] == RANDOM


def _parse(row: Mapping[str, str | None], path: Path, line: int) -> dict[str, Any]:
    parsed: dict[str, Any] = {}
    for name, text in row.items():
        try:
            if name in _NAMES:
                parsed[name] = text
            elif name in _INTEGERS:
                parsed[name] = int(text or "")
            else:
                parsed[name] = float(text) if text else math.nan
        except ValueError:
            raise UserError(f"{path}, line {line}: {name} is {text!r}, not a number; mend or remove the line") from None
    return parsed


def _mapping(parse: Any, path: Path) -> Mapping[str, Any]:
    loaded = parse(path.read_text()) if path.is_file() else {}
    return loaded if isinstance(loaded, dict) else {}
