"""What a frozen encoder's view is worth: Dice of its head on random whole frames, before (`PLAIN`) and now (`RAISED`).

    python bench/head_views.py DATA_ROOT --ignore_index 11 --split test --frames 10,20,80,all --seeds 3

The same frames, first weights' seeds and order of pixels for all; masks at 192 pixels. Features are kept in the cache
folder. A row for each view: the mean over seeds, and then the seeds' own; bench/results/HEAD.md has them. Beside
`before` and `now` there are, of what is now,

    mirrored   tested on frames and their mirror images, the probabilities of both averaged
    doubled    trained on both, too
    aspect     shown frames of their own sides' ratio, `--aspect 4:3`, in as many pixels, not stretched to squares
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from alges_fast.data import FrameSet, load_dataset
from alges_fast.models import FROZEN
from alges_fast.models.features_cache import Pictures, load_or_fit
from alges_fast.models.frozen import PLAIN, RAISED, View, build_trunk
from alges_fast.training.config import TrainConfig
from alges_fast.training.device import fabric_on
from alges_fast.training.evaluation import evaluate
from alges_fast.training.labelled import Labelled
from alges_fast.training.learner import HeadOfFrozenEncoder, Training

VIEWS: dict[str, View] = {"before": PLAIN, **dict.fromkeys(("now", "mirrored", "doubled", "aspect"), RAISED)}


class BothWays(nn.Module):
    """A head over features of a frame and, in the channels behind, of its mirror image."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, features: Tensor) -> Tensor:
        one, mirrored = features.chunk(2, 1)
        shares: Tensor = self.head(one).softmax(1) + self.head(mirrored).softmax(1).flip(3)
        return shares


def mirrored(frames: FrameSet) -> FrameSet:
    """The frames, left for right."""
    return FrameSet(
        ids=tuple(f"{id} mirrored" for id in frames.ids),
        videos=frames.videos,
        clips=frames.clips,
        images=np.ascontiguousarray(frames.images[..., ::-1]),
        masks=np.ascontiguousarray(frames.masks[..., ::-1]),
        read=lambda id, side: frames.pictures([frames.index(id.removesuffix(" mirrored"))], side)[0][..., ::-1],
    )


def together(one: FrameSet, other: FrameSet) -> FrameSet:
    """Two sets as one."""
    return FrameSet(
        ids=one.ids + other.ids,
        videos=one.videos + other.videos,
        clips=one.clips + other.clips,
        images=np.concatenate([one.images, other.images]),
        masks=np.concatenate([one.masks, other.masks]),
    )


def in_aspect(frames: FrameSet, aspect: float) -> tuple[NDArray[np.uint8], Pictures]:
    """The frames with sides of this ratio and as many pixels as their squares, and how they are read again."""
    root, n = aspect**0.5, frames.images.shape[2]

    def at(positions: Sequence[int], side: int, width: int) -> NDArray[np.uint8]:
        large = torch.from_numpy(frames.pictures(positions, 480)).float()
        shown = F.interpolate(large, (side, width), mode="bilinear", antialias=True)
        return shown.round().clamp(0, 255).to(torch.uint8).numpy()

    height, width = round(n / root), round(n * root)
    every = np.concatenate([at([position], height, width) for position in range(len(frames))])
    return every, lambda positions, side: at(positions, side, round(width * side / height))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_root", type=Path)
    parser.add_argument("--ignore_index", type=int)
    parser.add_argument("--image_size", type=int, default=192)
    parser.add_argument("--split", choices=("validation", "test"), default="test")
    parser.add_argument("--frames", default="10,20,80,all")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--views", default="before,now")
    parser.add_argument("--aspect", default="4:3")
    parser.add_argument("--encoder", help="another than the packaged one, with its --encoder_weights")
    parser.add_argument("--encoder_weights", help="a file, named as timm does")
    asked = parser.parse_args()
    data = load_dataset("folder", root=asked.data_root, image_size=asked.image_size, ignore_index=asked.ignore_index)
    judged, fabric = getattr(data, asked.split), fabric_on("cpu")
    other = {"encoder": asked.encoder, "encoder_weights": asked.encoder_weights} if asked.encoder else {}
    config = TrainConfig(image_size=asked.image_size, architecture=FROZEN, **other)
    assert config.encoder_weights is not None
    trunk = build_trunk(config.encoder, config.encoder_weights)
    for name in asked.views.split(","):
        start = time.process_time()
        shown = [(frames.images, frames.pictures) for frames in (data.train, judged)]
        if name == "aspect":
            width, height = (float(side) for side in asked.aspect.split(":"))
            shown = [in_aspect(frames, width / height) for frames in (data.train, judged)]
        (images, pictures), of_judged = shown
        encoder = load_or_fit(trunk, images, view=VIEWS[name], pictures=pictures)
        learner = HeadOfFrozenEncoder(config, encoder, lambda *_: None)
        inputs = torch.from_numpy(encoder.cached(images, pictures=pictures))
        judged_inputs = encoder.cached(of_judged[0], pictures=of_judged[1])
        pool = data.train
        if name in ("mirrored", "doubled"):
            judged_inputs = np.concatenate([judged_inputs, learner.inputs(mirrored(judged))], 1)
        if name == "doubled":
            inputs = torch.cat([inputs, torch.from_numpy(learner.inputs(mirrored(pool)))])
            pool = together(pool, mirrored(pool))
        encoding, start, n_trained = time.process_time() - start, time.process_time(), 0
        columns = []
        for frames in asked.frames.split(","):
            n = len(data.train) if frames == "all" else int(frames)
            dice = []
            for seed in range(asked.seeds):
                order = np.random.default_rng(seed).permutation(len(data.train))[:n]
                ids = tuple(pool.ids[at] for at in sorted(order))
                ids += tuple(f"{id} mirrored" for id in ids) if name == "doubled" else ()
                head = learner.new_network(len(data.classes), seed)
                learner.train(fabric, head, Training(Labelled(pool, ids), inputs, seed))
                tested = BothWays(head).eval() if name in ("mirrored", "doubled") else head
                counts = evaluate(
                    fabric, tested, judged, len(data.classes), inputs=judged_inputs, transform=learner.transform
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
