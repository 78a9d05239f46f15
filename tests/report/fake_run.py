"""A finished (or unfinished) OUT folder without an experiment: plausible numbers and drawn frames.

`python tests/report/fake_run.py OUT [none,4x4,8x8]` writes one to look at, with windows of these grids.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt
import yaml

from alges_fast.report.artefacts import FrameMaps, save_dataset, save_frames, save_thumbnails

STRATEGIES = ("random", "stratified-random", "entropy", "margin", "least-confidence", "coreset", "deal", "alges-img")
STRATEGIES += ("alges-sem", "alges-sem-vector", "alges-img-released", "alges-sem-released", "full")
CLASSES = ("black background", "abdominal wall", "liver", "gastrointestinal tract", "fat", "grasper")
CLASSES += ("connective tissue", "blood", "cystic duct", "L-hook electrocautery", "gallbladder", "hepatic vein")
CLASSES += ("liver ligament",)
PALETTE = ((127, 127, 127), (210, 140, 140), (255, 114, 114), (231, 70, 156), (186, 183, 75), (170, 255, 0))
PALETTE += ((255, 85, 0), (255, 0, 0), (255, 255, 0), (169, 255, 184), (255, 160, 165), (0, 50, 128), (111, 74, 0))
ABSENT = ("L-hook electrocautery", "cystic duct")  # classes that the test set does not hold
POOL = 640


def write_fake_run(
    out: Path,
    *,
    strategies: Sequence[str] = STRATEGIES,
    seeds: int = 5,
    rounds: int = 6,
    query_size: int = 10,
    dataset: str = "synthetic",
    artefacts: bool = True,
    unfinished: Sequence[tuple[str, int, int]] = (),
    regions: Sequence[str] = ("none",),
    random_rounds: int | None = None,
    random_query_size: int | None = None,
) -> Path:
    """Write a run; `unfinished` lists (strategy, seed, trainings done) that stopped early.

    With windows, finer ones give more for the same pixels, and strategies later in the list less outline for them.
    """
    out.mkdir(parents=True, exist_ok=True)
    stopped = {(strategy, seed): done for strategy, seed, done in unfinished}
    generator = np.random.default_rng(0)
    rows = []
    for (i, strategy), grid in itertools.product(enumerate(strategies), regions):
        if strategy == "full" and grid != regions[0]:
            continue
        name = strategy if grid == "none" or strategy == "full" else f"{strategy}@{grid}"
        per_frame = 1 if name == strategy else math.prod(map(int, grid.split("x")))
        for seed in range(seeds):
            planned = random_rounds or rounds if strategy == "random" else rounds
            step = random_query_size or query_size if strategy == "random" else query_size
            trainings = 1 if strategy == "full" else stopped.get((strategy, seed), planned)
            luck = 0.01 * np.random.default_rng(seed).normal()
            for r in range(trainings):
                n = POOL if strategy == "full" else 10 + r * step
                gain = (0.004 * (i % 5) + 0.003 * math.log2(per_frame)) * min(r, 3)
                dice = 0.25 + 0.09 * np.log(n / 5) + luck + gain + generator.normal(0, 0.008)
                spread = min(10 + r * step * per_frame, POOL) if name != strategy else n
                drawn = POOL if strategy == "full" else 10 + r * step * (1 - 0.08 * (i % 5) * (per_frame > 1))
                drawn *= 300
                effort = {"labelled_share": n / POOL, "n_frames": spread, "outline": round(drawn), "side": 96.0}
                effort |= _effort(r, step, per_frame, round(drawn), n)
                row = _row(strategy, seed, r, n, dice, generator)
                rows.append({**row, "regions": "none" if name == strategy else grid, **effort})
                if artefacts and strategy != "full":
                    ids = [_frame_id(k) for k in generator.choice(POOL, query_size, replace=False)]
                    if per_frame > 1:
                        side = 96 // int(grid.split("x")[0])
                        corners = side * generator.integers(0, 96 // side, (query_size, 2))
                        ids = [f"{k}#xywh={x},{y},{side},{side}" for k, (x, y) in zip(ids, corners, strict=True)]
                    folder = out / name / f"seed{seed}" / f"round{r:02d}"
                    folder.mkdir(parents=True, exist_ok=True)
                    (folder / "picks.json").write_text(json.dumps({"ids": ids, "scores": {}}))
    with (out / "results.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    config = {"dataset": dataset, "strategies": list(strategies), "seeds": list(range(seeds)), "rounds": rounds}
    config |= {"query_size": query_size, "random_query_size": random_query_size, "regions": list(regions)}
    config["image_size"] = 96
    (out / "config.yaml").write_text(yaml.safe_dump(config))
    environment = {"torch": "2.15.0", "device": "cpu", "machine": {"processor": "Xeon", "cores": 2}}
    (out / "environment.json").write_text(json.dumps(environment))
    if artefacts:
        _write_artefacts(out, dataset, seeds, rounds)
    return out


def _row(
    strategy: str, seed: int, round_: int, n: int, dice: float, generator: np.random.Generator
) -> dict[str, str | int | float]:
    selection = {"random": 0.0, "stratified-random": 0.0, "full": 0.0}.get(strategy, 0.8)
    per_class = np.clip(dice + 0.5 * np.cos(np.arange(len(CLASSES))), 0, 0.98)
    seconds = {"train": 20 + n / 5, "embed": selection * generator.uniform(0.9, 1.1), "seeding": selection / 40}
    return {
        "strategy": strategy,
        "seed": seed,
        "round": round_,
        "n_labelled": n,
        "dice": dice,
        "dice_image": dice + 0.05,
        "dice_released": dice + 0.2,
        "iou": dice * 0.8,
        **{f"{step}_seconds": value for step, value in {**seconds, "eval": 2.1}.items()},
        **{f"dice_{c}": "" if c in ABSENT else v for c, v in zip(CLASSES, per_class, strict=True)},
    }


def _effort(queries: int, step: int, per_frame: int, drawn: int, n: int) -> dict[str, float]:
    """Windows on sheets; a third of what is drawn is corrected."""
    windows = n if per_frame == 1 else 10 + queries * step * per_frame
    pictures = n if per_frame == 1 else 10 + queries * math.ceil(step * per_frame / 30)
    openings, corrected = n if per_frame == 1 else 10 + queries * step * per_frame, round(drawn / 3)
    seconds = {
        name: 5 * pictures + 2 * windows + 100 * length / 96
        for name, length in (("seconds", drawn), ("seconds_corrected", corrected))
    }
    return {"windows": windows, "pictures": pictures, "openings": openings, "corrected": corrected, **seconds}


def _frame_id(k: int) -> str:
    return f"video{k // 80:02d}_00{k // 80:03d}/frame_{k % 80}"


def draw(k: int, size: int = 96) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """An image (3, S, S) and its mask: a few discs on a dark ground."""
    generator = np.random.default_rng(k)
    yy, xx = np.mgrid[:size, :size]
    mask = np.zeros((size, size), np.uint8)
    for c in generator.choice(np.arange(1, len(CLASSES)), 5, replace=False):
        if CLASSES[c] in ABSENT:
            continue
        x, y, radius = generator.uniform(0.2, 0.8, 3) * size * (1, 1, 0.4)
        mask[(xx - x) ** 2 + (yy - y) ** 2 < radius**2] = c
    image = np.array(PALETTE, np.float32)[mask] * 0.6 + generator.normal(30, 12, (size, size, 3))
    mask[:2] = mask[-2:] = mask[:, :2] = mask[:, -2:] = 255
    return np.clip(image, 0, 255).astype(np.uint8).transpose(2, 0, 1), mask


def _write_artefacts(out: Path, dataset: str, seeds: int, rounds: int) -> None:
    drawn = [draw(k) for k in range(POOL)]
    masks = np.stack([mask for _, mask in drawn])

    def split(chosen: npt.NDArray[np.uint8]) -> SimpleNamespace:
        return type("Split", (SimpleNamespace,), {"__len__": lambda self: len(self.masks)})(masks=chosen)

    info = SimpleNamespace(
        name=dataset,
        classes=CLASSES,
        palette=PALETTE,
        notes=("12 pixels of unknown codes 35 and 36 were mapped to ignore", "video18_01139: one mask is RGBA"),
        train=split(masks),
        validation=split(masks[:100]),
        test=split(np.where(masks[100:250] == 7, 0, masks[100:250])),
    )
    save_dataset(out, info)
    save_thumbnails(out, ((_frame_id(k), image) for k, (image, _) in enumerate(drawn)))
    for strategy, r in (("alges-img", 0), ("alges-img", rounds - 1), ("alges-sem", rounds - 1)):
        images, truth = (np.stack(part) for part in zip(*drawn[:3], strict=True))
        prediction = np.where(truth == 255, 0, np.roll(truth, 3 + 2 * (rounds - r), axis=2))
        prediction[prediction == 255] = 0
        edges = np.abs(np.diff(prediction.astype(np.float32), axis=2, append=0)) > 0
        norms = (edges * 1.4 + np.random.default_rng(r).random(truth.shape) * 0.3).astype(np.float16)
        ids = tuple(_frame_id(k) for k in range(3))
        save_frames(out, FrameMaps(strategy, 0, r, ids, images, truth, prediction, norms))


if __name__ == "__main__":
    if len(sys.argv) == 2:
        write_fake_run(Path(sys.argv[1]))
    else:
        chosen = ("random", "stratified-random", "entropy", "balanced-entropy", "alges-effort", "full")
        write_fake_run(Path(sys.argv[1]), strategies=chosen, seeds=10, regions=sys.argv[2].split(","))
