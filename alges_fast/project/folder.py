"""A project's folder: plain files that git or a backup can hold, read and written by one process at a time.

    project.yaml                what it is about
    labels/<frame>.png          class ids at the frame's own size, 255 unlabelled: what all imports together say
    rounds/NNN/round.json       what was asked for, and the model that chose
              /picks.csv        what was chosen, and why; written last: without it the round is not out yet
              /index.html, contact_sheet.png, images/, masks/, norm_maps/, cvat.zip, label_studio/
              /returned/KKK/    one import: import.json, labels/ as they are after it, replaced/ as they were before
    models/NNN/model.json       what it was trained on and what it reached; written last
              /model.safetensors
    history.csv                 a row per model
    pool.json                   how alike frames of a video are (near_duplicates.py)
    status.html

Every file is written by atomic rename, and an import is made whole under a draft's name, renamed, and then copied into
labels/; the next command finishes that copy if a kill came between. So a kill at any instant loses the step in hand at
most.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from alges_fast import atomic
from alges_fast.annotation.desk import DESK, Sheet
from alges_fast.data.files import FaultyFile, read_ids
from alges_fast.errors import UserError
from alges_fast.models import FROZEN
from alges_fast.pages import encoded
from alges_fast.project.asking import whole
from alges_fast.project.config import FILE, ProjectConfig
from alges_fast.project.reading import numbered, read_facts, read_picks, windows_from
from alges_fast.strategies import Candidate
from alges_fast.windows import Window, named

COMMAND = "python -m alges_fast.project"
LOCK, DRAFTS = ".lock", ".imports.draft"
PICKS, ROUND, IMPORT, MODEL, HISTORY = "picks.csv", "round.json", "import.json", "model.json", "history.csv"

_OLDER = {"network": {"architecture": FROZEN}, "of_pictures": False, "saving": None}
"""Of a model.json that was written before it had these."""


@dataclass(frozen=True)
class Round:
    """One round.

    asked: the settings of `next`; of labels that were there before any round, none.
    model: number of the project's model that chose; None where none did.
    picks: in order of picking; None while it is not out.
    outlines: pick -> the outline that was predicted in it, in pixels; empty where none was.
    considered: how many frames it heard of; None of older rounds.
    """

    number: int
    folder: Path
    asked: Mapping[str, Any]
    model: int | None
    picks: Sequence[Candidate] | None
    outlines: Mapping[Candidate, float]
    considered: FrameCounts | None

    @cached_property
    def sheets(self) -> list[Sheet]:
        """Of the windows that went out on sheets, or one a picture. Raises UserError where their list is damaged."""
        path = self.folder / DESK
        if self.picks is None or not path.exists():
            return []
        try:
            return [Sheet.from_json(values) for values in json.loads(path.read_text(encoding="utf-8"))]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is damaged ({error}): restore it from a backup") from None

    def expected(self, picks: Iterable[Candidate]) -> float:
        """The outline that was predicted in these picks of the round, in pixels."""
        return sum(self.outlines.get(pick, 0.0) for pick in picks)


class FrameCounts(NamedTuple):
    """Of a round.

    considered: frames that it heard of.
    open: that it could have heard of.
    thinned: near-duplicates that were left out, whether labelled or not.
    """

    considered: int
    open: int
    thinned: int = 0

    def __str__(self) -> str:
        """What of this is worth a word."""
        parts = [f"{self.considered:,} of {self.open:,} frames considered"] if self.considered < self.open else []
        parts += [f"{self.thinned:,} near-duplicates left out"] if self.thinned else []
        return ", ".join(parts)


@dataclass(frozen=True)
class Import:
    """What came back at once.

    frames: id -> windows that were labelled, None for the whole frame.
    refused: frames, and windows.
    outside: pixels that were drawn outside of windows, and dropped.
    times: of every picture whose annotator's time is known.
    """

    number: int
    folder: Path
    round: int
    frames: Mapping[str, Sequence[Window] | None]
    refused: Sequence[Candidate]
    sources: Sequence[str]
    outline: int
    outside: int
    times: Sequence[TimedPicture]


class TimedPicture(NamedTuple):
    """What annotating a picture took.

    seconds: that it was open.
    looks: windows in it that were labelled, 1 for a frame.
    sides: outline that was drawn, in sides of the frame: what of the label differs from what was predicted.
    class_id: that most of what was labelled has.
    whole: whether it is a frame.
    """

    seconds: float
    looks: int
    sides: float
    class_id: int
    whole: bool


@dataclass(frozen=True)
class TrainedModel:
    """One training: facts are what model.json holds."""

    number: int
    folder: Path
    facts: Mapping[str, Any]

    @property
    def imports(self) -> frozenset[int]:
        """Numbers of the imports whose labels it was trained on; older projects keep how many there were."""
        given = self.facts["imports"]
        return frozenset(range(given) if isinstance(given, int) else given)

    @property
    def network(self) -> Mapping[str, Any]:
        """What names and trains it; see `training.TrainSettings`."""
        return dict(self.facts["network"])


class Project:
    """An open project; see `opened`."""

    def __init__(self, root: Path, config: ProjectConfig) -> None:
        self.root = root
        self.config = config

    def command(self, step: str, rest: str = "") -> str:
        """How a step is written on the command line."""
        return f"{COMMAND} {step} {self.root}{rest and ' ' + rest}"

    @property
    def writable(self) -> bool:
        """Whether this process may write into its folder."""
        return os.access(self.root, os.W_OK)

    @property
    def images(self) -> Path:
        """The pool; a relative path is relative to the project."""
        return self.root / self.config.images

    @cached_property
    def rounds(self) -> list[Round]:
        found = []
        for number, folder in numbered(self.root / "rounds"):
            if (folder / ROUND).exists():
                facts = read_facts(folder / ROUND, {"asked": dict, "model": (int, type(None))})
                rows = read_picks(folder / PICKS) if (folder / PICKS).exists() else None
                picks = None if rows is None else [pick for pick, _ in rows]
                outlines = {pick: outline for pick, outline in rows or () if outline is not None}
                considered = FrameCounts(*facts["considered"]) if isinstance(facts.get("considered"), list) else None
                asked = whole(facts["asked"]) if facts["asked"] else {}
                found.append(Round(number, folder, asked, facts["model"], picks, outlines, considered))
        return found

    @cached_property
    def imports(self) -> list[Import]:
        found = []
        for round in self.rounds:
            for number, folder in numbered(round.folder / "returned"):
                facts = read_facts(folder / IMPORT, {"frames": dict, "refused": list, "sources": list, "outline": int})
                frames = {id: windows_from(id, boxes, folder / IMPORT) for id, boxes in facts["frames"].items()}
                found.append(
                    Import(
                        number,
                        folder,
                        round.number,
                        frames,
                        list(map(named, facts["refused"])),
                        facts["sources"],
                        facts["outline"],
                        facts.get("outside", 0),
                        [TimedPicture(*row) for row in facts.get("times", ())],
                    )
                )
        return sorted(found, key=lambda import_: import_.number)

    @cached_property
    def models(self) -> list[TrainedModel]:
        return [
            TrainedModel(number, folder, _OLDER | read_facts(folder / MODEL, {"imports": (int, list), "round": int}))
            for number, folder in numbered(self.root / "models")
            if (folder / MODEL).exists()
        ]

    @cached_property
    def labelled(self) -> dict[str, tuple[Window, ...] | None]:
        """id -> labelled windows, None for the whole frame, in the order in which frames came back first."""
        found: dict[str, tuple[Window, ...] | None] = {}
        for import_ in self.imports:
            for id, windows in import_.frames.items():
                if windows is None or (id in found and found[id] is None):
                    found[id] = None
                else:
                    found[id] = tuple(dict.fromkeys([*(found.get(id) or ()), *windows]))
        return found

    @cached_property
    def refused(self) -> set[Candidate]:
        """Frames, and windows, that were refused and not annotated since."""
        return self.refused_before(None)

    def refused_before(self, number: int | None) -> set[Candidate]:
        """As `refused`, without what `next` was told to leave out from this round on; all of it for None."""
        found: set[Candidate] = set()
        for round in self.rounds:
            if number is None or round.number < number:
                found |= set(map(named, round.asked.get("reject", ())))
            for import_ in self.imports:
                if import_.round == round.number:
                    found = found.union(import_.refused).difference(
                        import_.frames, *filter(None, import_.frames.values())
                    )
        return found

    @property
    def out(self) -> dict[str, tuple[Window, ...] | None]:
        """id -> windows of frames that went out, None for the whole frame, in order of picking."""
        return self.out_before(None)

    def out_before(self, number: int | None) -> dict[str, tuple[Window, ...] | None]:
        """As `out`, of the rounds before this one; of all for None."""
        found: dict[str, tuple[Window, ...] | None] = {}
        for round in self.rounds:
            if number is not None and round.number >= number:
                break
            for pick in round.picks or ():
                if not isinstance(pick, Window):
                    found[str(pick)] = None
                elif pick.id not in found or found[str(pick.id)] is not None:
                    found[str(pick.id)] = (*(found.get(str(pick.id)) or ()), pick)
        return found

    @property
    def missing(self) -> list[Candidate]:
        """Picks that have not come back, in order of picking."""
        left: list[Candidate] = []
        for id, windows in self.out.items():
            done = self.labelled.get(id, ())
            if id in self.refused or done is None:
                continue
            left += [w for w in windows if w not in {*done, *self.refused}] if windows is not None else [id]
        return left

    def answered(self, round: Round) -> bool:
        """Whether any of a round came back."""
        missing = set(self.missing)
        return any(pick not in missing for pick in round.picks or ())

    def known_to(self, model: TrainedModel) -> bool:
        """Whether a model was trained on the labels that there are, no fewer and no more."""
        return model.imports == {import_.number for import_ in self.imports}

    @property
    def lost_rounds(self) -> list[int]:
        """Numbers of rounds whose folders, or what they hold of themselves, are gone: nothing of them counts."""
        there = {round.number for round in self.rounds}
        return [number for number in range(self._next_round()) if number not in there]

    @property
    def next_number(self) -> int:
        """That `begin_round` gives."""
        last = self.rounds[-1] if self.rounds else None
        return last.number if last is not None and self._makes_room(last) else self._next_round()

    def _makes_room(self, last: Round) -> bool:
        """Whether the last round was begun and never went out."""
        newest = last.number == self._next_round() - 1
        return newest and not _begun(last) and not (last.folder / "returned").exists()

    def _next_round(self) -> int:
        """The number after the largest that any folder has, or that a model was trained with: none comes twice but that
        of a round whose first file could not be written."""
        folders = [number for number, folder in numbered(self.root / "rounds") if _holds_anything(folder)]
        return max([*folders, *(int(model.facts["round"]) for model in self.models)], default=-1) + 1

    def label_path(self, name: str) -> Path:
        return self.root / "labels" / f"{name}.png"

    def label(self, name: str) -> NDArray[np.uint8]:
        """(H, W) class ids of a labelled frame, by its name in files. Raises UserError: where a copy is."""
        try:
            return read_ids(self.label_path(name))
        except FaultyFile as fault:
            copies = [import_.folder / "labels" / f"{name}.png" for import_ in reversed(self.imports)]
            there = next((path for path in copies if path.exists()), None)
            raise fault if there is None else UserError(f"{fault}; as it came back it is {there}") from None

    def begin_round(self, asked: Mapping[str, Any], model: int | None, considered: FrameCounts | None = None) -> Round:
        """A new round that is not out yet; one that was begun last and never went out makes room."""
        number = self.next_number
        if not (self.root / FILE).exists():
            self.config.write(self.root)
        folder = self.root / "rounds" / f"{number:03d}"
        if folder.exists():
            shutil.rmtree(folder)
        self._write_round(folder, asked, model, considered)
        return next(round for round in self.rounds if round.number == number)

    def withdraw(self, round: Round, asked: Mapping[str, Any], considered: FrameCounts) -> None:
        """Make a round that is out one that is not, asked for in other words: it is to be written anew."""
        (round.folder / PICKS).unlink()
        self._write_round(round.folder, asked, round.model, considered)

    def _write_round(
        self, folder: Path, asked: Mapping[str, Any], model: int | None, considered: FrameCounts | None
    ) -> None:
        atomic.write_json(folder / ROUND, {"asked": dict(asked), "model": model, "considered": considered})
        self.forget()

    @contextmanager
    def drafting(self) -> Iterator[Path]:
        """A folder for imports that are not whole yet; gone afterwards."""
        folder = self.root / DRAFTS
        atomic.remove_draft(folder)
        try:
            yield folder
        finally:
            atomic.remove_draft(folder)

    def add_import(self, draft: ImportDraft, sources: Sequence[str]) -> Import:
        """Take in what came back."""
        if not any(map(_begun, self.rounds)):
            self.begin_round({}, None)
        round = [round for round in self.rounds if _begun(round)][-1]
        known = [import_.number for import_ in self.imports]
        number = max([*known, *(number for model in self.models for number in model.imports)], default=-1) + 1
        for name in draft.names.values():
            if (old := self.label_path(name)).exists():
                atomic.write_draft(draft.folder / "replaced" / f"{name}.png", old.read_bytes())
        facts = {
            "frames": {
                id: None if boxes is None else [list(box[1:]) for box in boxes] for id, boxes in draft.frames.items()
            },
            "refused": sorted(map(str, draft.refused)),
            "sources": list(sources),
            "outline": draft.outline,
            "outside": draft.outside,
            "times": [list(row) for row in draft.times],
        }
        atomic.write_text(draft.folder / IMPORT, json.dumps(facts, indent=1) + "\n")  # in the order of the frames
        atomic.move_folder(draft.folder, round.folder / "returned" / f"{number:03d}")
        self.forget()
        self.finish_import()
        return self.imports[-1]

    def finish_import(self) -> None:
        """Copy the labels of the newest import to where they count; nothing where that is done."""
        if not self.imports or (done := self.imports[-1].folder / "copied").exists():
            return
        folder = self.imports[-1].folder / "labels"
        with atomic.written_together() as write:
            for path in sorted(folder.rglob("*.png")) if folder.exists() else []:
                write(self.root / "labels" / path.relative_to(folder), path.read_bytes())
        atomic.write_bytes(done, b"")

    def forget(self) -> None:
        """Read the folder again: it was written to."""
        for name in ("rounds", "imports", "models", "labelled", "refused"):
            self.__dict__.pop(name, None)


@dataclass
class ImportDraft:
    """What came back, mask by mask, in a folder that becomes an import when all of it is there.

    frames: id -> windows that were labelled, None for the whole frame. names: id -> its name in files. The rest is as
    in `Import`.
    """

    folder: Path
    frames: dict[str, Sequence[Window] | None] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    refused: list[Candidate] = field(default_factory=list)
    outline: int = 0
    outside: int = 0
    times: list[TimedPicture] = field(default_factory=list)

    def add(self, id: str, windows: Sequence[Window], name: str, mask: NDArray[np.uint8]) -> None:
        """Take in a frame: windows, more of it perhaps than are here already, none for all of it; and its label as it
        is from now on."""
        atomic.write_draft(self._path(name), encoded(Image.fromarray(mask), "png"))
        before = self.frames.get(id, ())
        whole = not windows or before is None
        self.frames[id], self.names[id] = None if whole else [*dict.fromkeys([*(before or ()), *windows])], name

    def label(self, id: str) -> NDArray[np.uint8] | None:
        """The label of a frame that is in it."""
        return read_ids(self._path(self.names[id])) if id in self.names else None

    def _path(self, name: str) -> Path:
        return self.folder / "labels" / f"{name}.png"


@contextmanager
def opened(root: Path, *, reading: bool = False) -> Iterator[Project]:
    """The project in this folder, to this process alone, with what a killed one left finished. For `reading` a folder
    that cannot be written will do, as it is.

    Raises:
        UserError: no project, a damaged one, or another process in it.
    """
    config = ProjectConfig.read(root)
    if reading and not (project := Project(root, config)).writable:
        yield project
        return
    with _alone(root, config) as project:
        yield project


@contextmanager
def begun(root: Path, config: ProjectConfig) -> Iterator[Project]:
    """As `opened`, the project of this configuration, which may not be written yet: its first round does that. One
    without classes takes those that are there.

    Raises:
        UserError: no such pool, a folder of something else, or a project of other settings.
    """
    pool = Path(config.images).expanduser().resolve()
    if not pool.exists():
        raise UserError(
            f"--images {config.images}: no such file or folder: give a folder of frames, a list, or a video"
        )
    inside = pool.is_relative_to(root.resolve())
    config = replace(config, images=os.path.relpath(pool, root.resolve()) if inside else pool.as_posix())
    if (root / FILE).exists():
        before = ProjectConfig.read(root)
        config = config if config.classes else replace(config, classes=before.classes)
        if changed := [name for name in vars(config) if getattr(before, name) != getattr(config, name)]:
            raise UserError(
                f"{root} is a project with another {changed[0]} ({getattr(before, changed[0])}): choose another folder"
            )
    left = {LOCK, DRAFTS, f".{FILE}.draft", "scores"}  # by one that ended before the first round
    taken = root.exists() and (not root.is_dir() or not left.issuperset(path.name for path in root.iterdir()))
    if taken and not (root / FILE).exists() and not (inside and root.is_dir()):
        raise UserError(f"{root} holds other files: choose a new folder")
    with _alone(root, config) as project:
        yield project


@contextmanager
def _alone(root: Path, config: ProjectConfig) -> Iterator[Project]:
    with atomic.locked(root / LOCK, wait=False) as alone:
        if not alone:
            raise UserError(f"{root}: another process works there: wait until it is done")
        project = Project(root, config)
        atomic.remove_draft(root / DRAFTS)
        project.finish_import()
        yield project


def _holds_anything(folder: Path) -> bool:
    """More than the draft of a file."""
    return any(not path.name.startswith(".") for path in folder.iterdir())


def _begun(round: Round) -> bool:
    """Whether it is out, or holds labels that were there before any round."""
    return round.picks is not None or not round.asked
