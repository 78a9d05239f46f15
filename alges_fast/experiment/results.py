"""What a run leaves beside its rounds' folders: results.csv, and the pictures that its report shows."""

from __future__ import annotations

import csv
import io
import itertools
import math
from dataclasses import fields
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from alges_fast import atomic
from alges_fast.experiment.processes import LOCK
from alges_fast.experiment.setting import Round, Setting
from alges_fast.experiment.state import STEPS, RoundFolder
from alges_fast.last_layer import LastLayer
from alges_fast.report import artefacts
from alges_fast.strategies import frame_of
from alges_fast.training.evaluation import predict
from alges_fast.training.labelled import Effort
from alges_fast.windows import named

COLUMNS = (
    *("strategy", "regions", "seed", "round", "n_labelled"),
    *(measure.name for measure in fields(Effort)),
    *("dice", "dice_image", "dice_released", "iou"),
    *("train_seconds", "embed_seconds", "seeding_seconds", "eval_seconds"),
)
"""First columns of results.csv; a column dice_<class> per class follows."""

N_REPORT_FRAMES = 4


def write_results(setting: Setting) -> list[dict[str, Any]]:
    """Derive results.csv from all finished rounds, in the configured order, whoever finished them in what order.

    Returns:
        Its rows; none on a process that does not lead.
    """
    if not setting.processes.leads:
        return []
    columns = [*COLUMNS, *(f"dice_{name}" for name in setting.dataset.classes)]
    rows = []
    with atomic.locked(setting.out / LOCK):
        for curve, seed in itertools.product(setting.curves, setting.config.seeds):
            for number in range(curve.n_rounds):
                place = (curve.name, seed, number)
                folder = RoundFolder.of(setting.out, *place)
                if place not in setting.rows and folder.n_finished() == len(STEPS):
                    setting.rows[place] = _row(folder)
                    if not setting.rows[place].keys() >= set(columns):
                        raise folder.damaged("metrics.json")
                if place in setting.rows:
                    rows.append({name: setting.rows[place][name] for name in columns})
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({name: "" if isinstance(v, float) and math.isnan(v) else v for name, v in row.items()})
        atomic.write_text(setting.out / "results.csv", text.getvalue())
    return rows


@torch.no_grad()
def save_frames(round: Round, model: nn.Module) -> None:
    """Keep test frames, evenly spaced, with the model's predictions and norm maps, for the report."""
    setting, test = round.setting, round.setting.dataset.test
    positions = sorted({int(p) for p in np.linspace(0, len(test) - 1, N_REPORT_FRAMES + 2)[1:-1].round()})
    frames = test.subset(positions)
    given, size = setting.test_inputs[positions], frames.masks.shape[1:]
    transform, fabric = setting.learner.transform, setting.processes.fabric
    inputs = transform(torch.from_numpy(given).to(setting.processes.device))
    try:
        norms = LastLayer.find(model, inputs[:1]).pixel_gradients(inputs, outputs=("norm_map",)).norm_map
    except ValueError as error:
        setting.monitor.note(f"no norm maps in the report: {error}")
        return
    assert norms is not None
    if norms.shape[1:] != size:
        norms = F.interpolate(norms.unsqueeze(1), size, mode="bilinear", align_corners=False).squeeze(1)
    artefacts.save_frames(
        setting.out,
        artefacts.FrameMaps(
            strategy=round.curve.name,
            seed=round.seed,
            round=round.number,
            ids=frames.ids,
            images=frames.images,
            masks=frames.masks,
            predictions=predict(fabric, model, given, size=size, transform=transform).to(torch.uint8).cpu().numpy(),
            norm_maps=norms.to(torch.float16).cpu().numpy(),
        ),
    )


def save_thumbnails(setting: Setting) -> None:
    """Keep small pictures of all frames that were picked, whole or in part, for the report."""
    pool = setting.pool
    picked: set[str] = set()
    for curve, seed in itertools.product(setting.curves, setting.config.seeds):
        for number in range(curve.n_rounds - 1):
            names = RoundFolder.of(setting.out, curve.name, seed, number).picked()
            picked.update(names if curve.regions is None else (str(frame_of(named(name))) for name in names))
    artefacts.save_thumbnails(setting.out, [(name, pool.images[pool.index(name)]) for name in sorted(picked)])


def _row(folder: RoundFolder) -> dict[str, Any]:
    """One row of results.csv; a round that asked for no frames spent no time choosing."""
    row = {"embed_seconds": 0.0, "seeding_seconds": 0.0, **folder.metrics()}
    if (folder.path / "picks.json").exists():
        row.update(folder.query_seconds())
    return row
