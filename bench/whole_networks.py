"""What a network trained whole is worth beside the head that it begins from: Dice of both on the same labels.

    python -m alges_fast.run --dataset folder --data_root CAMVID --ignore_index 11 --architecture frozen \\
        --image_size 96 --init_size 4 --query_size 2 --rounds 4 --seeds 0,1,2 --out PICKS \\
        --strategies random@none,random@16x16,alges-effort@16x16
    python bench/whole_networks.py CAMVID PICKS --ignore_index 11 --image_size 96 --seeds 0,1,2

PICKS says what is labelled; `all` is the whole pool: full supervision. A row of CSV for each: Dice of the head and of
the network on validation and test frames, and CPU seconds. bench/results/NETWORK.md has them.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from alges_fast.data import FrameSet, load_dataset
from alges_fast.experiment.setting import initial_pool
from alges_fast.models import FROZEN, TUNED
from alges_fast.random_streams import stream_seed
from alges_fast.training.config import TrainConfig
from alges_fast.training.device import fabric_on
from alges_fast.training.evaluation import evaluate
from alges_fast.training.labelled import Labelled
from alges_fast.training.learner import Training, make_learner
from alges_fast.windows import named


def labelled_by(picks: Path, curve: str, seed: int, pool: FrameSet, n_first: int) -> Labelled:
    """What a run had labelled in the end: whole frames at first, then what it picked."""
    if curve == "all":
        return Labelled(pool, pool.ids)
    first = [pool.ids[position] for position in initial_pool(len(pool), n_first, seed)]
    files = sorted((picks / curve / f"seed{seed}").glob("round*/picks.json"))
    return Labelled(pool, (*first, *(named(text) for file in files for text in json.loads(file.read_text())["ids"])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_root", type=Path)
    parser.add_argument("picks", type=Path)
    parser.add_argument("--of", default="random,random@16x16,alges-effort@16x16,all")
    parser.add_argument("--ignore_index", type=int)
    parser.add_argument("--image_size", type=int, default=192)
    parser.add_argument("--seeds", default="0")
    parser.add_argument("--init_size", type=int, default=4, help="of the run")
    parser.add_argument("--architecture", default=TUNED)
    parser.add_argument("--steps", type=int)
    parser.add_argument("--lr", type=float)
    asked = parser.parse_args()
    data = load_dataset("folder", root=asked.data_root, image_size=asked.image_size, ignore_index=asked.ignore_index)
    judged, fabric, n_classes = (data.validation, data.test), fabric_on("cpu"), len(data.classes)
    configs = {
        "head": TrainConfig(asked.image_size, FROZEN),
        "network": TrainConfig(asked.image_size, asked.architecture, steps=asked.steps, lr=asked.lr),
    }
    learners = {
        name: make_learner(config, n_classes, data.train, fabric.device, lambda *_: None)
        for name, config in configs.items()
    }
    inputs = {name: torch.from_numpy(learner.inputs(data.train)) for name, learner in learners.items()}
    tested = {name: [learner.inputs(frames) for frames in judged] for name, learner in learners.items()}
    columns = (f"{name}_{what}" for name in learners for what in ("validation", "test", "cpu_seconds"))
    print(",".join(("labels", "seed", *columns)), flush=True)
    for seed in map(int, asked.seeds.split(",")):
        for curve in asked.of.split(","):
            labelled = labelled_by(asked.picks, curve, seed, data.train, asked.init_size)
            row = [curve, str(seed)]
            for name, learner in learners.items():
                network = learner.new_network(n_classes, stream_seed("weights", seed, 0))
                start = time.process_time()
                learner.train(fabric, network, Training(labelled, inputs[name], seed))
                seconds = time.process_time() - start
                for frames, given in zip(judged, tested[name], strict=True):
                    counts = evaluate(
                        fabric, network.eval(), frames, n_classes, inputs=given, transform=learner.transform
                    )
                    row.append(f"{counts.metrics(data.classes)['dice']:.4f}")
                row.append(f"{seconds:.0f}")
            print(",".join(row), flush=True)


if __name__ == "__main__":
    main()
