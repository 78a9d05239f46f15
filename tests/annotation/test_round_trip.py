"""What was exported and comes back unchanged is the same pixels, through the tools' own libraries too."""

from __future__ import annotations

import json
import unicodedata
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from alges_fast.annotation.exports import ANNOTATE, AnnotatedFrame, cvat_xml, label_studio_tasks
from alges_fast.annotation.imports import ExpectedFrame, read_export, reading_of, shapes
from alges_fast.annotation.imports.frames import Reading
from alges_fast.pages import encoded
from alges_fast.windows import windows_of

NAMES = st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "S", "Zs")), min_size=1, max_size=8).map(
    str.strip
)
CLASSES = st.lists(
    NAMES.filter(lambda name: name not in ("", ANNOTATE, "refused", "background")),
    min_size=2,
    max_size=4,
    unique_by=lambda name: unicodedata.normalize("NFC", name),
)
# datumaro sorts its label map and takes the first for nothing: "background" must be it. A colon ends a name there.
LABEL_MAPS = CLASSES.map(lambda names: [f"class {k} {name.replace(':', ' ')}" for k, name in enumerate(names)])


@st.composite
def frames(draw: st.DrawFn, n_classes: int, max_frames: int = 3) -> list[AnnotatedFrame]:
    """Frames of any shape with masks of noise or of blocks, some cut to windows; something is labelled in each."""
    found = []
    for number in range(draw(st.integers(1, max_frames))):
        name = f"vidéo {draw(st.integers(1, 2))}/frame_{number}.png"
        height, width = draw(st.integers(2, 23)), draw(st.integers(2, 23))
        generator = np.random.default_rng(draw(st.integers(0, 2**32)))
        block = draw(st.integers(1, 9))
        small = generator.choice([*range(n_classes), 255], (-(-height // block), -(-width // block)))
        mask = np.repeat(np.repeat(small, block, 0), block, 1)[:height, :width].astype(np.uint8)
        windows = []
        if draw(st.booleans()):
            grid = windows_of(name, (height, width), (2, 2))
            windows = [grid[i] for i in sorted(draw(st.sets(st.integers(0, 3), min_size=1)))]
            outside = np.ones_like(mask, bool)
            for w in windows:
                outside[w.box] = False
                mask[w.y, w.x] = 0
            mask[outside] = 255
        mask.flat[0] = 0 if not windows else mask.flat[0]
        found.append(AnnotatedFrame(name, mask, 0.5, windows))
    return found


@st.composite
def exports(draw: st.DrawFn, names: st.SearchStrategy[list[str]] = CLASSES) -> tuple[list[str], list[AnnotatedFrame]]:
    classes = draw(names)
    return classes, draw(frames(len(classes)))


def palette(classes: Sequence[str]) -> list[tuple[int, int, int]]:
    return [(40 * k + 10, 255 - k, k) for k in range(len(classes))]


def reading(classes: Sequence[str], sent: Sequence[AnnotatedFrame], *, with_windows: bool = False) -> Reading:
    """Of what the files say alone, or of windows that are known."""
    expected = [
        ExpectedFrame(f.name, f.name, f.mask.shape, f.windows if with_windows else ())  # type: ignore[arg-type]
        for f in sent
    ]
    return reading_of(expected, classes)


def check(found: Iterable[Any], sent: Sequence[AnnotatedFrame], *, windows: bool = True) -> None:
    names = [frame.name for frame in sent]
    returned = sorted(found, key=lambda frame: names.index(frame.id))
    assert [frame.id for frame in returned] == names
    for frame, original in zip(returned, sent, strict=True):
        np.testing.assert_array_equal(frame.mask, original.mask)
        assert not frame.refused
        if windows:
            assert list(frame.windows) == list(original.windows)


def annotated(tasks: str) -> str:
    """The tasks as Label Studio exports them once the predictions are submitted."""
    return json.dumps(
        [{"data": t["data"], "annotations": [{"id": 1, **t["predictions"][0]}]} for t in json.loads(tasks)]
    )


@given(exports())
@settings(max_examples=20, deadline=None)
def test_cvat_images(export: tuple[list[str], list[AnnotatedFrame]]) -> None:
    classes, sent = export
    with TemporaryDirectory() as folder:
        path = Path(folder) / "annotations.xml"
        path.write_text(cvat_xml(sent, classes, palette(classes)), encoding="utf-8")
        check(read_export(path, reading(classes, sent)), sent)
        archive = Path(folder) / "job.zip"
        with zipfile.ZipFile(archive, "w") as file:
            file.write(path, "annotations.xml")
        check(read_export(archive, reading(classes, sent, with_windows=True)), sent)


@given(exports())
@settings(max_examples=20, deadline=None)
def test_label_studio(export: tuple[list[str], list[AnnotatedFrame]]) -> None:
    classes, sent = export
    with TemporaryDirectory() as folder:
        path = Path(folder) / "project.json"
        path.write_text(annotated(label_studio_tasks(sent, classes, image_prefix="/data/?d=a/", model_version="m")))
        check(read_export(path, reading(classes, sent)), sent)


@given(exports(), st.booleans())
@settings(max_examples=20, deadline=None)
def test_masks(export: tuple[list[str], list[AnnotatedFrame]], in_colours: bool) -> None:
    classes, sent = export
    with TemporaryDirectory() as folder:
        masks, colours = Path(folder) / "masks", None
        for frame in sent:
            path = masks / frame.name
            path.parent.mkdir(parents=True, exist_ok=True)
            picture = Image.fromarray(frame.mask)
            if in_colours:
                colours = Path(folder) / "palette.txt"
                table = np.array([*palette(classes), *[(0, 0, 0)] * (256 - len(classes))], np.uint8)
                picture = Image.fromarray(table[frame.mask])
                lines = [f"{name} {r} {g} {b}" for name, (r, g, b) in zip(classes, palette(classes), strict=True)]
                colours.write_text("\n".join([*lines, "unlabelled 0 0 0"]), encoding="utf-8")
            picture.save(path)
            for beside in (".DS_Store", "desktop.ini"):
                path.with_name(beside).touch()
        expected = reading(classes, sent, with_windows=True).frames
        check(read_export(masks, reading_of(expected, classes, palette=colours)), sent)


@pytest.mark.parametrize("kind", ["CVAT", "Label Studio", "Segmentation mask", "masks"])
def test_a_zip_made_on_windows(tmp_path: Path, kind: str) -> None:
    """Some tools there put backslashes into its names, and its folders are members too."""
    classes, mask = ["liver", "tool"], np.array([[0, 1, 255], [1, 0, 0]], np.uint8)
    sent = [AnnotatedFrame("video 1/a.png", mask, 0.5)]
    table = np.array([*palette(classes), *[(0, 0, 0)] * 254], np.uint8)
    colours = [f"{name}:{r},{g},{b}::" for name, (r, g, b) in zip(classes, palette(classes), strict=True)]
    members: dict[str, Any] = {
        "CVAT": {"annotations.xml": cvat_xml(sent, classes, palette(classes))},
        "Label Studio": {"a.json": annotated(label_studio_tasks(sent, classes, image_prefix="/d/", model_version="m"))},
        "Segmentation mask": {
            "labelmap.txt": "\n".join(["background:0,0,0::", *colours]),
            "SegmentationClass\\": "",
            "SegmentationClass\\video 1\\a.png": encoded(Image.fromarray(table[mask]), "png"),
        },
        "masks": {"video 1\\": "", "video 1\\a.png": encoded(Image.fromarray(mask), "png")},
    }
    with zipfile.ZipFile(tmp_path / "job.zip", "w") as archive:
        for name, contents in members[kind].items():
            archive.writestr(f"job\\{name}", contents)
    check(read_export(tmp_path / "job.zip", reading(classes, sent)), sent)


@pytest.mark.parametrize(("values", "said"), [((0, 255), True), ((0, 1, 255), False), ((0,), False)])
def test_masks_of_0_and_255_are_remarked_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, values: Sequence[int], said: bool
) -> None:
    """What such a mask means to most tools, a background and an object, it does not mean here."""
    mask = np.resize(np.array(values, np.uint8), (4, 6))
    (tmp_path / "masks").mkdir()
    for name in ("a.png", "b.png"):
        Image.fromarray(mask if name == "a.png" else mask * 0).save(tmp_path / "masks" / name)
    sent = [AnnotatedFrame("a.png", mask, 0.5), AnnotatedFrame("b.png", mask * 0, 0.5)]
    check(read_export(tmp_path / "masks", reading(["wall", "tool"], sent)), sent)
    assert (caplog.text.count("255 is unlabelled. If 255 is tool") == 1) == said
    if said:  # the remedy that it names
        (tmp_path / "palette").write_text("wall 0 0 0\ntool 255 255 255")
        told = reading_of(reading(["wall", "tool"], sent).frames, ["wall", "tool"], palette=tmp_path / "palette")
        first, _ = read_export(tmp_path / "masks", told)
        assert first.mask.tolist() == (mask == 255).tolist()


@given(exports(LABEL_MAPS))
@settings(max_examples=15, deadline=None)
def test_datumaro_converts_to_segmentation_masks(export: tuple[list[str], list[AnnotatedFrame]]) -> None:
    """What CVAT's server does: datumaro reads our file and writes Segmentation mask 1.1."""
    datumaro = pytest.importorskip("datumaro", reason="datumaro, CVAT's import library, is not installed")
    classes, sent = export
    with TemporaryDirectory() as folder:
        root = Path(folder)
        for frame in sent:
            (root / "images" / frame.name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(frame.mask).save(root / "images" / frame.name)
        without_windows = [AnnotatedFrame(f.name, f.mask, f.score) for f in sent]
        (root / "annotations.xml").write_text(cvat_xml(without_windows, classes, palette(classes)), encoding="utf-8")
        read = datumaro.Dataset.import_from(str(root / "annotations.xml"), "cvat")
        label_map = {"background": [(0, 0, 0), [], []]}
        label_map |= {name: [rgb, [], []] for name, rgb in zip(classes, palette(classes), strict=True)}
        read.export(str(root / "out"), "voc_segmentation", save_media=False, label_map=label_map)
        with zipfile.ZipFile(root / "job.zip", "w") as file:
            for path in (root / "out").rglob("*"):
                file.write(path, path.relative_to(root / "out").as_posix())
        check(read_export(root / "job.zip", reading(classes, sent, with_windows=True)), sent)


@given(st.lists(st.tuples(st.floats(-5, 15), st.floats(-5, 15)), min_size=3, max_size=6))
@settings(max_examples=50, deadline=None)
def test_a_polygon_is_cut_to_what_holds_it(points: list[tuple[float, float]]) -> None:
    """Pixel by pixel: inside if a ray from its centre to the left crosses the outline an odd number of times."""
    size = (9, 11)
    edges = list(zip(points, [*points[1:], points[0]], strict=True))
    expected = np.zeros(size, np.uint8)
    for row, column in np.ndindex(*size):
        for (x0, y0), (x1, y1) in edges:
            if (y0 <= row + 0.5) != (y1 <= row + 0.5):
                at = x0 + (row + 0.5 - y0) * ((x1 - x0) / (y1 - y0))
                expected[row, column] ^= at <= column + 0.5
    np.testing.assert_array_equal(whole(shapes.polygon(points, size), size), expected)


@given(st.integers(0, 2**32), st.integers(1, 30), st.integers(1, 30))
@settings(max_examples=20, deadline=None)
def test_brush_of_label_studios_own_encoder(seed: int, height: int, width: int) -> None:
    brush = pytest.importorskip("label_studio_sdk.converter.brush", reason="label-studio-sdk is not installed")
    where = np.random.default_rng(seed).random((height, width)) < 0.4
    code = brush.mask2rle(where.astype(np.uint8) * 255)
    np.testing.assert_array_equal(whole(shapes.brush(code, (height, width)), (height, width)), where)


@given(st.lists(st.tuples(st.floats(-5, 45), st.floats(-5, 35)), min_size=3, max_size=7))
@settings(max_examples=20, deadline=None)
def test_polygon_is_that_of_cvats_library_off_its_outline(points: list[tuple[float, float]]) -> None:
    """pycocotools rounds the outline to pixels in a way of its own; a pixel and a half away from it all agree."""
    mask_utils = pytest.importorskip("pycocotools.mask", reason="pycocotools, datumaro's and CVAT's, is not installed")
    size = (30, 40)
    flat = [value for point in points for value in point]
    theirs = mask_utils.decode(mask_utils.frPyObjects([flat], *size))[..., 0].astype(bool)
    ours = whole(shapes.polygon(points, size), size)
    rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
    near = np.zeros(size, bool)
    for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[0]], strict=True):
        length = (x1 - x0) ** 2 + (y1 - y0) ** 2
        along = np.clip(((columns - x0) * (x1 - x0) + (rows - y0) * (y1 - y0)) / max(length, 1e-12), 0, 1)
        near |= np.hypot(columns - x0 - along * (x1 - x0), rows - y0 - along * (y1 - y0)) < 1.5
    np.testing.assert_array_equal(ours[~near], theirs[~near])


def whole(patch: shapes.Patch, size: tuple[int, int]) -> NDArray[np.uint8]:
    mask = np.zeros(size, np.uint8)
    shapes.paint(mask, patch, 1)
    return mask


def centres_inside(patch: shapes.Patch) -> list[tuple[int, int]]:
    return [(int(x), int(y)) for y, x in np.argwhere(whole(patch, (9, 9)))]


def test_shapes_by_their_pixels_centres() -> None:
    assert centres_inside(shapes.polygon([(0.4, 0), (2.4, 0), (2.4, 1), (0.4, 1)], (2, 4))) == [(0, 0), (1, 0)]
    assert centres_inside(shapes.rectangle(1, 1, 2, 1, (3, 4))) == [(1, 1), (2, 1)]
    assert centres_inside(shapes.rectangle(1, 1, 2, 1, (4, 4), degrees=90, about="corner")) == [(0, 1), (0, 2)]
    assert centres_inside(shapes.rectangle(0, 1, 3, 1, (3, 3), degrees=90)) == [(1, 0), (1, 1), (1, 2)]
    assert centres_inside(shapes.ellipse(1.5, 1.5, 1.2, 0.2, (3, 3))) == [(0, 1), (1, 1), (2, 1)]
    assert centres_inside(shapes.ellipse(1.5, 1.5, 1.2, 0.2, (3, 3), degrees=90)) == [(1, 0), (1, 1), (1, 2)]


@pytest.mark.parametrize(
    ("window_known", "expected"),
    [(False, [[255, 255, 255, 255], [255, 0, 0, 1]]), (True, [[255] * 4, [255, 255, 0, 1]])],
)
def test_order_windows_and_background(tmp_path: Path, window_known: bool, expected: list[list[int]]) -> None:
    """Later z over earlier, pixels count inside windows alone, background fills them; a frame with nothing is left."""
    xml = f"""<annotations><image id="0" name="a.png" width="4" height="2">
    <box label="{ANNOTATE}" xtl="1" ytl="1" xbr="4" ybr="2" z_order="-1"/>
    <polygon label="two" points="3,0;4,0;4,2;3,2" z_order="5"/>
    <box label="one" xtl="2" ytl="0" xbr="4" ybr="2" z_order="2"/>
    </image><image id="1" name="b.png" width="4" height="2"/></annotations>"""
    (tmp_path / "annotations.xml").write_text(xml)
    windows = [windows_of("a.png", (2, 4), (2, 2))[3]] if window_known else []
    frames = [ExpectedFrame(name, name, (2, 4), windows) for name in ("a.png", "b.png")]
    background = None if window_known else "one"
    (found,) = read_export(tmp_path, reading_of(frames, ("one", "two"), background=background))
    assert found.id == "a.png"
    assert found.mask.tolist() == expected
    assert [(w.x, w.y, w.width, w.height) for w in found.windows] == [(2, 1, 2, 1) if window_known else (1, 1, 3, 1)]
    everything = reading_of(frames, ("one", "two"), background="one", finished=["b.png"])
    (found,) = read_export(tmp_path, everything)
    assert found.id == "b.png"
    assert (found.mask[-1, -2:] == 0).all()


def test_refusals(tmp_path: Path) -> None:
    frames = [ExpectedFrame(name, name, (2, 4)) for name in ("a.png", "b.png", "c.png")]
    (tmp_path / "annotations.xml").write_text(
        '<annotations><image id="0" name="x/a.png" width="4" height="2"><tag label="refused"/></image></annotations>'
    )
    (found,) = read_export(tmp_path / "annotations.xml", reading_of(frames, ("one",)))
    assert found.refused
    assert (found.mask == 255).all()
    common = {"original_width": 4, "original_height": 2, "type": "rectanglelabels"}
    whole = {"x": 0, "y": 0, "width": 100, "height": 100, "rectanglelabels": ["one"]}
    half = {**whole, "width": 50}
    tasks = [
        {"data": {"image": "/data/upload/1/0a1b2c3d-a.png"}, "annotations": [{"was_cancelled": True, "result": []}]},
        {"data": {"image": "/data/local-files/?d=x%2Fb.png"}, "annotations": []},
        {
            "data": {"image": "s3://bucket/c.png"},
            "annotations": [
                {"id": 1, "updated_at": "2026-01-02", "result": [{**common, "value": half}]},
                {"id": 2, "updated_at": "2026-01-01", "result": [{**common, "value": whole}]},
                {"id": 3, "updated_at": "2026-01-03", "was_cancelled": True, "result": []},
            ],
        },
    ]
    (tmp_path / "tasks.json").write_text(json.dumps(tasks))
    first, second = read_export(tmp_path / "tasks.json", reading_of(frames, ("one",)))
    assert (first.id, first.refused) == ("a.png", True)
    assert (second.id, second.mask.tolist()) == ("c.png", [[0, 0, 255, 255]] * 2)
