"""What a whole network is worth beside the head that teaches it: Dice of both on the same labels.

    python -m alges_fast.run --dataset folder --data_root CAMVID --ignore_index 11 --architecture frozen \\
        --image_size 96 --init_size 4 --query_size 2 --rounds 4 --seeds 0 --out PICKS \\
        --strategies random@none,random@16x16,alges-effort@16x16
    python bench/whole_networks.py CAMVID PICKS --image_size 96 --steps 300

`PICKS` says what is labelled; `all` is the whole pool, with no teacher: full supervision. A row for each: Dice of the
head, of the network, and CPU seconds. bench/results/NETWORK.md has them.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from alges_fast.data import FrameSet, load_dataset
from alges_fast.experiment.setting import initial_pool
from alges_fast.models import FROZEN
from alges_fast.models.features_cache import load_or_fit
from alges_fast.models.frozen import build_trunk
from alges_fast.models.weights import PACKAGED, PACKAGED_ENCODER, load_weights, read_weights
from alges_fast.training.config import TrainConfig
from alges_fast.training.device import fabric_on
from alges_fast.training.evaluation import evaluate
from alges_fast.training.labelled import Labelled
from alges_fast.training.learner import HeadOfFrozenEncoder, Teacher, Training, WholeNetwork
from alges_fast.windows import named


class Narrow(WholeNetwork):
    """A U-Net with so many channels in its decoder, whose encoder may stand still at first."""

    channels: tuple[int, ...]

    def new_network(self, n_classes: int, seed: int) -> nn.Module:
        import segmentation_models_pytorch as smp

        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            network: nn.Module = smp.Unet(
                PACKAGED_ENCODER, encoder_weights=None, decoder_channels=self.channels, classes=n_classes
            )
        state = read_weights(PACKAGED_ENCODER, PACKAGED)
        assert state is not None
        load_weights(network.encoder, state, PACKAGED)  # type: ignore[arg-type]
        return network


def labelled_by(picks: Path, curve: str, seed: int, pool: FrameSet, n_first: int) -> Labelled:
    """What a run had labelled in the end: whole frames at first, then what it picked."""
    if curve == "all":
        return Labelled(pool, pool.ids)
    first = [pool.ids[position] for position in initial_pool(len(pool), n_first, seed)]
    files = sorted((picks / curve / f"seed{seed}").glob("round*/picks.json"))
    return Labelled(pool, (*first, *(named(text) for file in files for text in json.loads(file.read_text())["ids"])))


def standing_still(network: nn.Module, share: float, images: int) -> Callable[[float], None]:
    """Keeps a network's encoder as it is in this share of each training of so many images: call it with those shown."""
    shown = 0.0

    def on_batch(more: float) -> None:
        nonlocal shown
        shown += more
        network.encoder.requires_grad_(shown % images >= share * images)  # type: ignore[operator, union-attr]

    on_batch(0)
    return on_batch


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_root", type=Path)
    parser.add_argument("picks", type=Path)
    parser.add_argument("--of", default="random,random@16x16,alges-effort@16x16,all")
    parser.add_argument("--ignore_index", type=int, default=11)
    parser.add_argument("--image_size", type=int, default=192)
    parser.add_argument("--split", choices=("validation", "test"), default="validation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--init_size", type=int, default=4, help="of the run")
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--lr", type=float, default=4e-3)
    parser.add_argument("--augment", default="flip,scale,colour")
    parser.add_argument("--channels", default="96,64,48,32,16")
    parser.add_argument(
        "--still", type=float, default=0.5, help="share of the steps in which the encoder is not trained"
    )
    parser.add_argument("--self_training", type=int, default=0)
    asked = parser.parse_args()
    data = load_dataset("folder", root=asked.data_root, image_size=asked.image_size, ignore_index=asked.ignore_index)
    judged, fabric, n_classes = getattr(data, asked.split), fabric_on("cpu"), len(data.classes)
    of_head = TrainConfig(image_size=asked.image_size, architecture=FROZEN)
    assert of_head.encoder_weights is not None
    trunk = build_trunk(of_head.encoder, of_head.encoder_weights)
    encoder = load_or_fit(trunk, data.train.images, pictures=data.train.pictures)
    head_learner = HeadOfFrozenEncoder(of_head, encoder, lambda *_: None)
    maps = head_learner.inputs(data.train)
    teacher = Teacher(head_learner, maps, n_classes)
    for curve in asked.of.split(","):
        labelled = labelled_by(asked.picks, curve, asked.seed, data.train, asked.init_size)
        config = TrainConfig(
            image_size=asked.image_size,
            architecture="unet",
            encoder=PACKAGED_ENCODER,
            encoder_weights=PACKAGED,
            steps=asked.steps,
            batch_size=asked.batch_size,
            lr=asked.lr,
            augment=asked.augment,
            self_training=asked.self_training,
        )
        Narrow.channels = tuple(int(text) for text in asked.channels.split(","))
        learner = Narrow(config, n_classes, None if curve == "all" else teacher)
        network = learner.new_network(n_classes, asked.seed)
        start = time.process_time()
        on_batch = standing_still(network, asked.still, asked.steps * asked.batch_size)
        learner.train(fabric, network, Training(labelled, data.train.images, asked.seed, on_batch=on_batch))
        seconds = time.process_time() - start
        reached = evaluate(fabric, network, judged, n_classes, transform=learner.transform).metrics(data.classes)
        head = head_learner.new_network(n_classes, asked.seed)
        head_learner.train(fabric, head, Training(labelled, torch.from_numpy(maps), asked.seed))
        inputs = head_learner.inputs(judged)
        of_head_counts = evaluate(fabric, head, judged, n_classes, inputs=inputs, transform=head_learner.transform)
        print(
            f"{curve}: head {of_head_counts.metrics(data.classes)['dice']:.3f}, network {reached['dice']:.3f}, "
            f"{seconds:.0f} CPU s",
            flush=True,
        )


if __name__ == "__main__":
    main()
