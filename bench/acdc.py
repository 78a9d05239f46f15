"""Makes a `folder` data set of ACDC (Bernard et al. 2018), cardiac MRI: `python bench/acdc.py SOURCE ROOT`.

SOURCE holds either form in which ACDC is had:

    patientPPP_frameFF_slice_S.h5                     slices, as WSL4MIS keeps them (keys image and label)
    **/patientPPP_frameFF.nii.gz and ..._gt.nii.gz    volumes, as the challenge gives them

ROOT becomes {train,val,test}/{images,masks}/patientPPP_frameFFsliceSS.png with classes.txt, so that a patient is a
"video". The split is by patient: numbers that end in 9 or 0 are for testing, in 7 or 8 for validation, the others are
the pool. A slice is clipped at its 99.5th percentile, scaled to 0..255 and cut to its centre square. Needs h5py or
nibabel (the extra `bench`). ROOT must lie outside the repository: the images are not ours to pass on.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from as_folder import Frame, arguments, write_folder
from numpy.typing import NDArray

CLASSES = ("background", "right ventricle", "myocardium", "left ventricle")
NAME = re.compile(r"patient(\d+)_frame(\d+)(?:_slice_(\d+))?")


def split_of(patient: int) -> str:
    return {9: "test", 0: "test", 7: "val", 8: "val"}.get(patient % 10, "train")


def picture(values: NDArray[np.floating]) -> NDArray[np.uint8]:
    """A slice as grey values: from its least value to its 99.5th percentile."""
    low, high = float(values.min()), float(np.percentile(values, 99.5))
    scaled = (np.clip(values, low, high) - low) / max(high - low, 1e-12)
    return np.asarray((scaled * 255).round(), dtype=np.uint8)


def centre_square(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    height, width = values.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return values[top : top + side, left : left + side]


def slices(source: Path) -> Iterator[tuple[int, int, int, NDArray[np.floating], NDArray[np.uint8]]]:
    """(patient, frame, slice, image, labels) of every slice, in order of name."""
    if files := sorted(source.rglob("patient*_frame*_slice_*.h5")):
        import h5py

        for path in files:
            found = NAME.match(path.name)
            assert found is not None
            with h5py.File(path) as file:
                yield int(found[1]), int(found[2]), int(found[3]), file["image"][:], file["label"][:]
        return
    volumes = [path for path in sorted(source.rglob("patient*_frame*.nii*")) if "_gt" not in path.name]
    if not volumes:
        sys.exit(f"{source}: neither patientPPP_frameFF_slice_S.h5 nor patientPPP_frameFF.nii.gz: give ACDC's folder")
    import nibabel

    for path in volumes:
        found = NAME.match(path.name)
        assert found is not None
        image = np.asarray(nibabel.load(path).dataobj, dtype=np.float32)
        labels = np.asarray(nibabel.load(path.with_name(path.name.replace(".nii", "_gt.nii"))).dataobj)
        for index in range(image.shape[2]):
            yield int(found[1]), int(found[2]), index, image[..., index], labels[..., index].astype(np.uint8)


def frames(source: Path) -> Iterator[Frame]:
    for patient, frame, index, image, labels in slices(source):
        stem = f"patient{patient:03d}_frame{frame:02d}slice{index:02d}"
        yield Frame(split_of(patient), stem, centre_square(picture(image)), centre_square(labels))


def main() -> None:
    given = arguments(__doc__).parse_args()
    write_folder(given.root, CLASSES, frames(given.source))


if __name__ == "__main__":
    main()
