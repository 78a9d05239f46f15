"""How long one strategy and seed of the paper's experiment would take here, from two of its rounds.

    python bench/paper_run.py [--epochs 1 ...]

Runs `alges_fast.run --preset paper` for two rounds on drawn frames, with so many labelled that training dominates, and
draws lines: training through the two rounds' images, scoring and evaluating through the frames that they saw. Prints
one line of JSON. Further arguments go to the run.
"""

from __future__ import annotations

import csv
import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from alges_fast.data import synthetic

ROUNDS, INIT_SIZE, QUERY_SIZE = 30, 10, 10  # the paper's
NEEDED = ("n_labelled", "train_seconds", "embed_seconds", "seeding_seconds", "eval_seconds")


def frames(*, full: bool) -> tuple[int, int]:
    """Of the pool and of the test set; the full ones are of the paper's size."""
    plan = synthetic.plan(full=full, split="alges", seed=0)
    return len(plan["train"]), len(plan["test"])


def extrapolated(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Seconds of the whole run by kind, from two rounds on the smaller synthetic set."""
    first, second = rows
    pool, test = frames(full=False)
    whole_pool, whole_test = frames(full=True)
    per_image = (second["train_seconds"] - first["train_seconds"]) / (second["n_labelled"] - first["n_labelled"])
    once = max(0.0, first["train_seconds"] - per_image * first["n_labelled"])
    labelled = [INIT_SIZE + round * QUERY_SIZE for round in range(ROUNDS)]
    scored = sum(whole_pool - count for count in labelled[:-1])
    seconds = {
        "train": sum(once + per_image * count for count in labelled),
        "score": first["embed_seconds"] / (pool - first["n_labelled"]) * scored,
        "pick": first["seeding_seconds"] * (ROUNDS - 1),
        "evaluate": second["eval_seconds"] / test * whole_test * ROUNDS,
    }
    return {**seconds, "whole": sum(seconds.values())}


def main(given: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        run = ("-m", "alges_fast.run", "--preset", "paper", "--dataset", "synthetic", "--out", str(out))
        size = (
            "--strategies",
            "alges-img",
            "--seeds",
            "0",
            "--rounds",
            "2",
            "--init_size",
            "100",
            "--query_size",
            "100",
        )
        subprocess.run([sys.executable, *run, *size, *given], check=True)
        with (out / "results.csv").open(newline="") as file:
            found = list(csv.DictReader(file))
    rows = [{name: float(row[name] or 0) for name in NEEDED} for row in found]
    seconds = {name: round(value, 1) for name, value in extrapolated(rows).items()}
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    print(json.dumps({"gpu": gpu, "seconds_of_30_rounds": seconds, "two_rounds": rows}))


if __name__ == "__main__":
    main(sys.argv[1:])
