"""A project as a raw data set of nnU-Net v2.

    DIR/dataset.json             channels, and the labels by name: `background` is 0, `ignore` the highest
       /splits_final.json        folds by video; nnU-Net looks for it beside the data that it has preprocessed
       /imagesTr/CASE_0000.png   frames with labels, RGB
       /labelsTr/CASE.png        their labels, `ignore` where there is none
       /imagesTs/CASE_0000.png   others, to be predicted

DIR is to be `DatasetNNN_NAME` in the folder that the variable nnUNet_raw names. Formats: dataset_format.md,
ignore_label.md and manual_data_splits.md in the documentation of https://github.com/MIC-DKFZ/nnUNet.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from alges_fast import atomic
from alges_fast.annotation.picks import predicted_classes
from alges_fast.annotation.sources import FrameReader, PoolFrame
from alges_fast.data.files import FaultyFile
from alges_fast.errors import UserError
from alges_fast.job import device_of
from alges_fast.labels import UNLABELLED
from alges_fast.pages import encoded
from alges_fast.progress import Progress, silent
from alges_fast.project.asking import NextSettings
from alges_fast.project.folder import Project
from alges_fast.project.labels import read_labels
from alges_fast.project.nnunet_names import DATASET, OURS, case_of, label_names
from alges_fast.project.pool import ProjectPool, list_pool
from alges_fast.project.reading import read_json
from alges_fast.project.scoring import chooser, read_frames
from alges_fast.project.training import MOST_TAUGHT, at_most

SPLITS = "splits_final.json"
FOLDS = 5
"""As many as nnU-Net makes itself, where there are as many videos."""
TAUGHT = "_taught"
"""Ends the case of a frame with the head's labels where it has none of its own, beside the case without them."""
FOUND_BY = re.compile(r"Dataset(\d{3})_.+")

Predict = Callable[[PoolFrame, NDArray[np.uint8]], NDArray[np.uint8]]
"""(a frame, its picture (H, W, 3)) -> (H, W) class ids."""


@dataclass(frozen=True)
class NnunetSettings:
    """What is written.

    Args:
        teach: add what the project's model says of all that has no label, in at most 2,000 more frames.
        predict: frames without a label that are written to be predicted, drawn at random.
    """

    teach: bool = False
    predict: int = 1000

    def __post_init__(self) -> None:
        if self.predict < 0:
            raise UserError(f"--predict is {self.predict}: give at least 0")


def export_nnunet(project: Project, out: Path, settings: NnunetSettings, progress: Progress = silent) -> list[str]:
    """Write a data set of the project's labels to a folder, in the place of an earlier one; lines that say what it
    holds and what to type next.

    Raises:
        UserError: nothing is labelled, no model that teaches, a labelled frame that cannot be read (others are left
            out), a folder of something else.
    """
    if not project.labelled:
        raise UserError(f"nothing is labelled yet: {project.command('next', '-n 20')} first")
    place = out.resolve()
    atomic.restore_folder(place)
    earlier = out / DATASET
    if out.exists() and not out.is_dir():
        raise UserError(f"--nnunet {out}: a file: choose a folder")
    if out.is_dir() and any(out.iterdir()) and not (earlier.exists() and OURS in read_json(earlier)):
        raise UserError(f"--nnunet {out} holds other files: choose a new folder, such as Dataset501_NAME")
    draft = place.with_name(f".{place.name}.draft")
    atomic.remove_draft(draft)
    try:
        facts = _write(project, draft, settings, progress)
        atomic.move_folder(draft, place)
    finally:
        atomic.remove_draft(draft)
        atomic.restore_folder(place)
    return [facts, *_what_to_type(project, out)]


def folds(videos: Mapping[str, str], n: int = FOLDS) -> list[list[str]]:
    """Items in as many parts as there are videos, n at most, a video's in one; of one video, parts of its course.

    Args:
        videos: item -> its video, in the order of the pool.
    """
    groups: dict[str, list[str]] = {}
    for item, video in videos.items():
        groups.setdefault(video, []).append(item)
    parts = list(groups.values())
    if len(parts) == 1:
        parts = [part.tolist() for part in np.array_split(np.array(parts[0]), min(n, len(videos)))]
    shares: list[list[str]] = [[] for _ in range(min(n, len(parts)))]
    for part in sorted(parts, key=len, reverse=True):
        min(shares, key=len).extend(part)
    order = {item: at for at, item in enumerate(videos)}
    return [sorted(share, key=order.__getitem__) for share in shares]


def _write(project: Project, folder: Path, settings: NnunetSettings, progress: Progress) -> str:
    names = label_names(project.config)
    pool = list_pool(project)
    masks = read_labels(project).masks
    others = [frame.id for frame in pool.frames if frame.id not in masks]
    taught = set(at_most(MOST_TAUGHT, others, project.config.seed)) if settings.teach else set()
    asked = set(at_most(settings.predict, others, project.config.seed))
    predict = _teacher(project, pool, progress) if settings.teach else None
    of_interest = [frame for frame in pool.frames if frame.id in masks or frame.id in taught or frame.id in asked]
    reader, cases, complete = FrameReader(), 0, set()
    for done, frame in enumerate(of_interest):
        progress("writing frames", done, len(of_interest))
        mask, case = masks.get(frame.id), case_of(frame.id)
        try:
            image = reader.read(frame)
        except FaultyFile:
            if mask is not None:
                raise
            taught.discard(frame.id)
            asked.discard(frame.id)
            continue
        picture = encoded(Image.fromarray(image), "png", compress_level=1)
        written: dict[str, NDArray[np.uint8]] = {} if mask is None else {case: mask}
        if mask is not None and (mask != UNLABELLED).all():
            complete.add(frame.id)
        elif predict is not None and (mask is not None or frame.id in taught):
            said = predict(frame, image)
            written[case + TAUGHT] = said if mask is None else np.where(mask == UNLABELLED, said, mask)
        for name, label in written.items():
            atomic.write_draft(folder / "imagesTr" / f"{name}_0000.png", picture)
            encoded_label = encoded(Image.fromarray(names.values[label]), "png")
            atomic.write_draft(folder / "labelsTr" / f"{name}.png", encoded_label)
        cases += len(written)
        if frame.id in asked:
            atomic.write_draft(folder / "imagesTs" / f"{case}_0000.png", picture)
    atomic.write_json(folder / SPLITS, _splits(pool, set(masks), taught, complete if settings.teach else set(masks)))
    facts: dict[str, Any] = {
        "channel_names": {"0": "R", "1": "G", "2": "B"},
        "labels": names.names,
        "numTraining": cases,
        "file_ending": ".png",
        "overwrite_image_reader_writer": "NaturalImage2DIO",
        OURS: {"imports": [import_.number for import_ in project.imports]},
    }
    atomic.write_json(folder / DATASET, facts)
    more = f", {len(taught)} with the model's" if settings.teach else ""
    return f"{len(masks)} frames with labels{more}, {len(asked)} to be predicted"


def _splits(pool: ProjectPool, labelled: set[str], taught: set[str], complete: set[str]) -> list[dict[str, list[str]]]:
    """nnU-Net's folds: what an annotator labelled is tested, as it is; a network learns from no frame, taught or not,
    of what it is tested on.

    Args:
        complete: labelled frames that stand as they are in training too; others have a case that is taught.
    """
    ids = [frame.id for frame in pool.frames if frame.id in labelled or frame.id in taught]
    videos = {id: pool.by_id[id].video for id in ids}
    parts = folds({id: video for id, video in videos.items() if id in labelled})
    group_of: dict[str, Any] = dict(videos)
    if len({videos[id] for id in labelled}) == 1:
        # Parts of one video: a frame between two labelled ones is of the part of the one before it.
        part_of, last = {id: number for number, part in enumerate(parts) for id in part}, 0
        for id in ids:
            if videos[id] == videos[parts[0][0]]:
                group_of[id] = last = part_of.get(id, last)
    splits = []
    for part in parts:
        tested = {group_of[id] for id in part}
        seen = [id for id in ids if group_of[id] not in tested] or ids  # one frame alone is both
        train = [case_of(id) + ("" if id in complete else TAUGHT) for id in seen]
        splits.append({"train": train, "val": [case_of(id) for id in part]})
    return splits


def _teacher(project: Project, pool: ProjectPool, progress: Progress) -> Predict:
    """What the project's newest model says of a frame."""
    newest = project.models[-1] if project.models else None
    if newest is None or not project.known_to(newest):
        raise UserError(f"--teach: no model knows all labels: {project.command('train')} first")
    device = device_of("auto")
    model = chooser(project, newest, NextSettings())
    assert model is not None
    frames = read_frames(project, pool, model, looks=True, compares=False, device=device, progress=progress)
    inputs_of = frames.inputs_of(model)

    @torch.no_grad()
    def predict(frame: PoolFrame, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return predicted_classes(model.network(inputs_of(frame, image).to(device)), image.shape[:2])

    return predict


def _what_to_type(project: Project, out: Path) -> Sequence[str]:
    name = FOUND_BY.fullmatch(out.name)
    number = "NNN" if name is None else name[1]
    lines = [f"written: {out}"]
    if name is None:
        lines.append("call it DatasetNNN_NAME, in the folder of nnUNet_raw, for nnU-Net to find it")
    lines += [
        f"nnUNetv2_plan_and_preprocess -d {number} -c 2d --verify_dataset_integrity",
        f"cp {out / SPLITS} $nnUNet_preprocessed/{out.name}/",
        f"nnUNetv2_train {number} 2d 0",
    ]
    if (out / "imagesTs").is_dir():
        lines.append(f"nnUNetv2_predict -i {out / 'imagesTs'} -o predicted -d {number} -c 2d -f 0 --save_probabilities")
        lines.append(project.command("import", "--predictions predicted"))
    return lines
