"""Two rounds of annotation from bare frames, with a script in the annotator's place. A few minutes on two cores.

    python examples/project.py [FOLDER]

FOLDER/study/rounds/001/index.html is then a page of windows to annotate; FOLDER/study/status.html tells the story.
What this file does in Python, `python -m alges_fast.project` does at the command line.
"""

import csv
import sys
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image

from alges_fast import project
from alges_fast.data import synthetic

CLASSES = tuple(name.lower() for name in synthetic.CLASSES)


def draw_frames(folder: Path, n: int = 40) -> dict[str, np.ndarray]:
    """Write frames of synthetic surgery; the truth about each, by its name."""
    truth = {}
    frames = synthetic.plan(full=False, split="alges", seed=0)["train"]
    for frame in frames[:: len(frames) // n][:n]:
        image, mask = synthetic.draw(frame, (240, 426))
        name = f"{frame.id}.png"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.transpose(1, 2, 0)).save(folder / name)
        truth[name] = mask
    return truth


def annotate(picks: Path, truth: dict[str, np.ndarray]) -> Path:
    """A zip of masks (class ids, 255 unlabelled), as an annotation tool would give it back."""
    export = picks.parent.with_suffix(".zip")
    with picks.open() as file, zipfile.ZipFile(export, "w") as archive:
        for name in dict.fromkeys(row["frame"] for row in csv.DictReader(file)):
            with archive.open(name, "w") as member:
                Image.fromarray(truth[name]).save(member, "png")
    return export


def main(folder: Path) -> None:
    truth = draw_frames(folder / "frames")
    study = folder / "study"
    project.new(study, project.ProjectConfig(str(folder / "frames"), CLASSES, image_size=128))
    for settings in (project.NextSettings(n=10), project.NextSettings(n=2, regions="4x4", strategy="alges-effort")):
        round = project.next_round(study, settings)  # nothing is labelled before the first
        project.import_(study, [annotate(round.folder / "picks.csv", truth)])
        model = project.train(study)
        print(f"round {round.number}: {len(round.picks or ())} picks, model {model.number}")
    print(project.status(study))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/example"))
