"""Does DEAL's difficulty map tell where the network is wrong on frames it has not seen?

    python bench/deal_correlation.py CAMVID

trains DEAL's network on random frames of CamVid's training split, several seeds, and compares, on its test split, the
difficulty of each labelled pixel with whether the prediction is wrong there. Beside it the prediction's entropy, which
needs no learning. Writes bench/results/deal_correlation.json and .png.

The defaults train much longer than a round of an experiment on few frames does: the branch's last layer starts at
random and Adam moves a weight by at most about the learning rate a step, so after a hundred steps its map still says
little.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import torch
from lightning_fabric import Fabric
from scipy.stats import rankdata, spearmanr

from alges_fast.data import Dataset, load_dataset, to_input
from alges_fast.experiment import initial_pool
from alges_fast.labels import UNLABELLED
from alges_fast.models import build_model
from alges_fast.models.deal import DealModel
from alges_fast.random_streams import stream_seed
from alges_fast.strategies import get_strategy
from alges_fast.training.config import TrainConfig
from alges_fast.training.whole_network import train

RESULTS = Path(__file__).parent / "results"
N_PARTS = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_root", type=Path, metavar="CAMVID", help="images/ and masks/ under each split")
    parser.add_argument("--image_size", type=int, default=64)
    parser.add_argument("--labelled", type=int, default=200)
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    dataset = load_dataset("folder", root=options.data_root, image_size=options.image_size, ignore_index=11)
    fabric = Fabric(accelerator="auto", devices=1)
    found = []
    for seed in range(options.seeds):
        model = trained(fabric, dataset, seed, options)
        maps = predict(fabric, model, dataset.test.images)
        found.append(measure(maps, dataset.test.masks))
        print(json.dumps(found[-1]))
        if seed == 0:
            draw(maps, dataset, RESULTS / "deal_correlation.png")
    settings = {name: value for name, value in vars(options).items() if name != "data_root"}
    means = {name: {k: float(np.mean([f[name][k] for f in found])) for k in found[0][name]} for name in found[0]}
    report = {"settings": settings, "test_frames": len(dataset.test), "mean_over_seeds": means, "seeds": found}
    (RESULTS / "deal_correlation.json").write_text(json.dumps(report, indent=1) + "\n")


def trained(fabric: Fabric, dataset: Dataset, seed: int, options: argparse.Namespace) -> DealModel:
    n_classes = len(dataset.classes)
    network = build_model(num_classes=n_classes, seed=stream_seed("weights", seed, 0))
    model = DealModel(network, n_classes, stream_seed("strategy's weights", seed, 0))
    frames = dataset.train.subset(initial_pool(len(dataset.train), options.labelled, seed))
    loss = get_strategy("deal")().loss
    config = TrainConfig(epochs=options.epochs, batch_size=options.batch_size)
    train(fabric, model, frames, config, seed=seed, round=0, loss=loss)
    return model


@torch.inference_mode()
def predict(fabric: Fabric, model: DealModel, images: np.ndarray) -> dict[str, np.ndarray]:
    """(N, S, S) each: prediction, difficulty, entropy in nats."""
    parts = []
    for start in range(0, len(images), 16):
        logits, difficulty = model.difficulty(to_input(images[start : start + 16]).to(fabric.device))
        log_p = logits.log_softmax(1)
        parts.append((logits.argmax(1).byte(), difficulty, -(log_p.exp() * log_p).sum(1)))
    arrays = [torch.cat(part).cpu().numpy() for part in zip(*parts, strict=True)]
    return dict(zip(("prediction", "difficulty", "entropy"), arrays, strict=True))


def measure(maps: dict[str, np.ndarray], masks: np.ndarray) -> dict[str, dict[str, float]]:
    """For difficulty and entropy: how well they rank and correlate with errors, over pixels and over frames."""
    known = masks != UNLABELLED
    wrong = (maps["prediction"] != masks) & known
    rates = wrong.sum((1, 2)) / known.sum((1, 2))
    found = {"error": {"rate": float(wrong[known].mean())}}
    for name in ("difficulty", "entropy"):
        values = maps[name]
        within = [np.corrcoef(v[k], w[k])[0, 1] for v, w, k in zip(values, wrong, known, strict=True)]
        means = [v[k].mean() for v, k in zip(values, known, strict=True)]
        found[name] = {
            "auroc": auroc(values[known], wrong[known]),
            "pearson_all_pixels": float(np.corrcoef(values[known], wrong[known])[0, 1]),
            "pearson_within_a_frame": float(np.mean(within)),
            "spearman_over_frames": float(spearmanr(means, rates).statistic),
        }
    return found


def auroc(score: np.ndarray, positive: np.ndarray) -> float:
    """Probability that a wrong pixel has a larger score than a right one, ties counted half."""
    n = int(positive.sum())
    return float((rankdata(score)[positive].sum() - n * (n + 1) / 2) / (n * (len(score) - n)))


def draw(maps: dict[str, np.ndarray], dataset: Dataset, path: Path) -> None:
    """Three test frames with errors and difficulty, and the share of wrong pixels at each tenth of difficulty."""
    test = dataset.test
    known = test.masks != UNLABELLED
    wrong = (maps["prediction"] != test.masks) & known
    figure = plt.figure(figsize=(11, 5.4), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1.25, 1])
    axes = left.subplots(3, 3)
    frames = np.linspace(0, len(test) - 1, 5).round().astype(int)[1:-1]
    top = float(np.quantile(maps["difficulty"][frames], 0.99))
    for row, frame in zip(axes, frames, strict=True):
        row[0].imshow(test.images[frame].transpose(1, 2, 0))
        error = np.where(known[frame], wrong[frame].astype(float), 0.5)
        row[1].imshow(error, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        drawn = row[2].imshow(maps["difficulty"][frame], vmin=0, vmax=top)
        for axis in row:
            axis.set_axis_off()
    for axis, title in zip(axes[0], ("frame", "wrong: white, void: grey", "difficulty"), strict=True):
        axis.set_title(title, fontsize=10)
    left.colorbar(drawn, ax=axes[:, 2], shrink=0.6)
    axis = right.subplots()
    for name, marker in (("difficulty", "o"), ("entropy", "s")):
        order = np.argsort(maps[name][known], kind="stable")
        shares = [part.mean() for part in np.array_split(wrong[known][order], N_PARTS)]
        axis.plot(np.arange(N_PARTS) * 10 + 5, shares, marker=marker, label=name)
    axis.axhline(wrong[known].mean(), color="0.6", linestyle="--", linewidth=1, label="all pixels")
    axis.set(xlabel="pixels of held-out frames by rank, percentile", ylabel="share that is wrong", xlim=(0, 100))
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
