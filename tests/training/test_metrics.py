"""Metrics against torchmetrics where it treats absent classes right, and against brute force elsewhere."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from torch import Tensor
from torchmetrics.functional.classification import multiclass_confusion_matrix, multiclass_jaccard_index
from torchmetrics.functional.segmentation import dice_score

from alges_fast.labels import UNLABELLED
from alges_fast.training.metrics import SegmentationCounts

K = 12
CLASSES = [f"class {k}" for k in range(K)]
EXACT = {"rel": 1e-12, "abs": 0}


def frames(n: int = 7, *, size: int = 19, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Predictions and masks with what real ones have: rare and absent classes, ignored pixels, a frame all ignored."""
    generator = np.random.default_rng(seed)
    shares = np.array([8, 4, 4, 2, 2, 1, 0.2, 0.05, 0, 0.5, 0.5, 0])  # classes 8 and 11 never occur in the truth
    mask = generator.choice(K, size=(n, size, size), p=shares / shares.sum()).astype(np.uint8)
    noise = generator.integers(0, K, mask.shape, dtype=np.uint8)
    prediction = np.where(generator.random(mask.shape) < 0.6, mask, noise)
    mask[generator.random(mask.shape) < 0.1] = UNLABELLED
    mask[n // 2] = UNLABELLED
    return torch.from_numpy(prediction), torch.from_numpy(mask)


def counted(prediction: Tensor, mask: Tensor, batch: int = 3, n_classes: int = K) -> SegmentationCounts:
    counts = SegmentationCounts(n_classes)
    for start in range(0, len(mask), batch):
        counts.update(prediction[start : start + batch], mask[start : start + batch])
    return counts


def same(a: dict[str, float], b: dict[str, float]) -> bool:
    return a.keys() == b.keys() and all(x == b[key] or (math.isnan(x) and math.isnan(b[key])) for key, x in a.items())


def overlaps(prediction: Tensor, mask: Tensor, k: int) -> tuple[int, int, int]:
    """Right, true and predicted pixels of class k, by going over every pixel."""
    pairs = [
        (p, t) for p, t in zip(prediction.flatten().tolist(), mask.flatten().tolist(), strict=True) if t != UNLABELLED
    ]
    return sum(p == t == k for p, t in pairs), sum(t == k for _, t in pairs), sum(p == k for p, _ in pairs)


def test_confusion_matrix_is_torchmetrics() -> None:
    prediction, mask = frames()
    truth = multiclass_confusion_matrix(prediction.long(), mask.long(), K, ignore_index=UNLABELLED)
    assert torch.equal(counted(prediction, mask).confusion, truth)


def test_dice_and_iou_are_torchmetrics_where_every_class_occurs() -> None:
    generator = torch.Generator().manual_seed(1)
    prediction = torch.randint(0, 4, (5, 16, 16), generator=generator)
    mask = torch.randint(0, 4, (5, 16, 16), generator=generator)
    ours = counted(prediction, mask, n_classes=4).metrics(list("abcd"))
    whole = {"num_classes": 4, "input_format": "index", "include_background": True}
    one_image = (prediction.reshape(1, -1), mask.reshape(1, -1))  # as torchmetrics counts per image
    assert ours["dice"] == pytest.approx(float(dice_score(*one_image, average="macro", **whole)), rel=1e-6)
    per_image = dice_score(prediction, mask, average="macro", **whole)
    assert ours["dice_image"] == pytest.approx(float(per_image.mean()), rel=1e-6)
    assert ours["iou"] == pytest.approx(float(multiclass_jaccard_index(prediction, mask, 4, average="macro")), rel=1e-6)
    per_class = dice_score(*one_image, average="none", **whole)[0]
    assert [ours[f"dice_{name}"] for name in "abcd"] == pytest.approx(per_class.tolist(), rel=1e-6)


def test_definitions_by_brute_force_with_absent_classes_and_ignored_pixels() -> None:
    prediction, mask = frames()
    ours = counted(prediction, mask).metrics(CLASSES)

    dice, iou = {}, {}
    for k in range(K):
        right, true, predicted = overlaps(prediction, mask, k)
        if true:
            dice[k], iou[k] = 2 * right / (true + predicted), right / (true + predicted - right)
    assert set(dice) == set(range(K)) - {8, 11}
    assert ours["dice"] == pytest.approx(sum(dice.values()) / len(dice), **EXACT)
    assert ours["iou"] == pytest.approx(sum(iou.values()) / len(iou), **EXACT)
    for k, name in enumerate(CLASSES):
        assert ours[f"dice_{name}"] == pytest.approx(dice.get(k, math.nan), **EXACT, nan_ok=True)

    image_means = []
    released: dict[int, list[float]] = {k: [] for k in (0, 1, 2, 3, 4, 5, 9, 10)}
    for p, t in zip(prediction, mask, strict=True):
        terms = [overlaps(p, t, k) for k in range(K)]
        present = [2 * right / (true + predicted) for right, true, predicted in terms if true + predicted]
        if present:
            image_means.append(sum(present) / len(present))
        for k, values in released.items():
            right, true, predicted = terms[k]
            values.append((2 * right + 1) / (true + predicted + 1))
    assert len(image_means) == len(mask) - 1, "the frame without a pixel that counts is left out"
    assert ours["dice_image"] == pytest.approx(sum(image_means) / len(image_means), **EXACT)
    class_means = [sum(values) / len(values) for values in released.values()]
    assert ours["dice_released"] == pytest.approx(sum(class_means) / len(class_means), **EXACT)


def test_released_dice_takes_the_listed_classes_that_exist_and_scores_absent_ones_1() -> None:
    mask = torch.zeros(1, 4, 4, dtype=torch.uint8)
    prediction = torch.zeros(1, 4, 4, dtype=torch.uint8)
    prediction[0, 0] = 6  # four pixels of a class the released code does not average over
    metrics = counted(prediction, mask, n_classes=7).metrics(list("abcdefg"))
    expected = (25 / 29 + 5) / 6  # class 0, then 1 to 5, which are absent from both
    assert metrics["dice_released"] == pytest.approx(expected, **EXACT)


def test_shards_and_batch_sizes_give_the_same_metrics_to_the_last_bit() -> None:
    prediction, mask = frames(23)
    whole = counted(prediction, mask, batch=23).metrics(CLASSES)
    for batch in (1, 4):
        assert same(counted(prediction, mask, batch=batch).metrics(CLASSES), whole)
    shards = [counted(prediction[rank::5], mask[rank::5]) for rank in range(5)]
    assert same(SegmentationCounts.merge(shards).metrics(CLASSES), whole)


def _gather(rank: int, rendezvous: str, results: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    prediction, mask = frames(23)
    metrics = counted(prediction[rank::2], mask[rank::2]).gather().metrics(CLASSES)
    torch.save(metrics, f"{results}/{rank}.pt")
    torch.distributed.destroy_process_group()


def test_two_processes_gather_what_one_counts(tmp_path: Path) -> None:
    mp.spawn(_gather, (str(tmp_path / "rendezvous"), str(tmp_path)), nprocs=2)
    whole = counted(*frames(23)).metrics(CLASSES)
    for rank in range(2):
        assert same(torch.load(tmp_path / f"{rank}.pt"), whole)


def test_int64_and_uint8_and_volumes_count_alike() -> None:
    prediction, mask = frames()
    whole = counted(prediction, mask).metrics(CLASSES)
    assert same(counted(prediction.long(), mask.long()).metrics(CLASSES), whole)
    volume = counted(prediction.unsqueeze(1), mask.unsqueeze(1))
    assert same(volume.metrics(CLASSES), whole)


def test_perfect_prediction_scores_1_and_nothing_seen_scores_nan() -> None:
    _, mask = frames()
    perfect = counted(torch.where(mask == UNLABELLED, 0, mask), mask).metrics(CLASSES)
    assert [perfect[name] for name in ("dice", "dice_image", "dice_released", "iou")] == [1, 1, 1, 1]
    nothing = SegmentationCounts(K).metrics(CLASSES)
    assert all(math.isnan(value) for value in nothing.values())


@pytest.mark.parametrize(("where", "stray"), [("mask", 12), ("mask", 254), ("prediction", 255)])
def test_a_class_id_out_of_range_is_an_error_not_a_count(where: str, stray: int) -> None:
    prediction, mask = frames()
    (prediction if where == "prediction" else mask)[0, 0, :2] = stray
    mask[0, 0, :2] = mask[0, 0, :2].clamp(max=254) if where == "mask" else 0
    with pytest.raises(ValueError, match=r"2 pixels have a class id .* outside 0\.\.11"):
        counted(prediction, mask).metrics(CLASSES)


def test_wrong_arguments_are_named() -> None:
    counts = SegmentationCounts(2)
    with pytest.raises(ValueError, match=r"prediction is \(1, 2\) and mask \(1, 3\)"):
        counts.update(torch.zeros(1, 2, dtype=torch.uint8), torch.zeros(1, 3, dtype=torch.uint8))
    with pytest.raises(TypeError, match=r"prediction is torch.float32"):
        counts.update(torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.uint8))
    with pytest.raises(ValueError, match="2 distinct names"):
        counts.metrics(["a", "a"])
    with pytest.raises(ValueError, match="at least one part"):
        SegmentationCounts.merge([])
    with pytest.raises(ValueError, match="named 'image', and dice_image is another metric"):
        counts.metrics(["sky", "image"])
    for n_classes in (0, 256):  # 255 is the id that does not count
        with pytest.raises(ValueError, match=f"n_classes is {n_classes}"):
            SegmentationCounts(n_classes)
