"""What a frozen encoder's view is worth: Dice of its head on random whole frames, before (`PLAIN`) and now (`RAISED`).

    python bench/head_views.py DATA_ROOT --ignore_index 11 --split test --frames 10,20,80,all --seeds 3

The same frames, first weights' seeds and order of pixels for both; masks at 192 pixels. Features are kept in the cache
folder. A row for each view: the mean over seeds, and then the seeds' own; bench/results/HEAD.md has them.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch

from alges_fast.data import load_dataset
from alges_fast.models import FROZEN
from alges_fast.models.features_cache import load_or_fit
from alges_fast.models.frozen import PLAIN, RAISED, View, build_trunk
from alges_fast.training.config import TrainConfig
from alges_fast.training.device import fabric_on
from alges_fast.training.evaluation import evaluate
from alges_fast.training.labelled import Labelled
from alges_fast.training.learner import HeadOfFrozenEncoder, Training

VIEWS: dict[str, View] = {"before": PLAIN, "now": RAISED}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_root", type=Path)
    parser.add_argument("--ignore_index", type=int)
    parser.add_argument("--image_size", type=int, default=192)
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--frames", default="10,20,80,all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--views", default="before,now")
    asked = parser.parse_args()
    data = load_dataset("folder", root=asked.data_root, image_size=asked.image_size, ignore_index=asked.ignore_index)
    judged, fabric = getattr(data, asked.split), fabric_on("cpu")
    config = TrainConfig(image_size=asked.image_size, architecture=FROZEN)
    assert config.encoder_weights is not None
    trunk = build_trunk(config.encoder, config.encoder_weights)
    for name in asked.views.split(","):
        start = time.process_time()
        encoder = load_or_fit(trunk, data.train.images, view=VIEWS[name], pictures=data.train.pictures)
        learner = HeadOfFrozenEncoder(config, encoder, lambda *_: None)
        inputs, judged_inputs = (torch.from_numpy(learner.inputs(frames)) for frames in (data.train, judged))
        encoding, start, n_trained = time.process_time() - start, time.process_time(), 0
        columns = []
        for frames in asked.frames.split(","):
            n = len(data.train) if frames == "all" else int(frames)
            dice = []
            for seed in range(asked.seeds):
                order = np.random.default_rng(seed).permutation(len(data.train))[:n]
                labelled = Labelled(data.train, tuple(data.train.ids[at] for at in sorted(order)))
                head = learner.new_network(len(data.classes), seed)
                learner.train(fabric, head, Training(labelled, inputs, seed))
                counts = evaluate(
                    fabric, head, judged, len(data.classes), inputs=judged_inputs.numpy(), transform=learner.transform
                )
                dice.append(counts.metrics(data.classes)["dice"])
                n_trained += 1
            columns.append(f"{frames}: {np.mean(dice):.3f} ({' '.join(f'{value:.3f}' for value in dice)})")
        each = (time.process_time() - start) / n_trained
        print(
            name,
            *columns,
            f"encoding {encoding:.0f} CPU s, each training and its test {each:.2f}",
            sep="  ",
            flush=True,
        )


if __name__ == "__main__":
    main()
