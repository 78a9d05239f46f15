"""Everything that can be wrong with what comes back is one line that names it."""

from __future__ import annotations

import io
import json
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from alges_fast.annotation.imports import ExpectedFrame, read_export, reading_of
from alges_fast.errors import UserError

FRAMES = [ExpectedFrame(f"{video}/frame_1.png", f"{video}/frame_1.png", (2, 4)) for video in ("one", "two")]
CLASSES = ("liver", "polyp")


def xml(
    shapes: str = "", *, name: str = "one/frame_1.png", size: str = 'width="4" height="2"', head: str = ""
) -> bytes:
    return f'{head}<annotations><image id="0" name="{name}" {size}>{shapes}</image></annotations>'.encode()


def box(label: str = "liver", corners: str = 'xtl="0" ytl="0" xbr="2" ybr="2"') -> str:
    return f'<box label="{label}" {corners}/>'


def mask(**changes: str) -> str:
    values = {"label": "liver", "rle": "0, 4", "left": "0", "top": "0", "width": "2", "height": "2"} | changes
    return "<mask " + " ".join(f'{name}="{value}"' for name, value in values.items()) + "/>"


def tasks(*results: dict[str, Any], **changes: Any) -> bytes:
    task = {"data": {"image": "one/frame_1.png"}, "annotations": [{"id": 1, "result": list(results)}]}
    return json.dumps([task | changes]).encode()


def region(kind: str = "rectanglelabels", **changes: Any) -> dict[str, Any]:
    value = {"x": 0, "y": 0, "width": 50, "height": 100, kind: ["liver"]} | changes
    return {"type": kind, "original_width": 4, "original_height": 2, "value": value}


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, contents in members.items():
            archive.writestr(name, contents)
    return buffer.getvalue()


def long_list() -> bytes:
    """A zip whose list of members takes 17 MB."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for number in range(270):
            member = zipfile.ZipInfo(f"{number}.png")
            member.comment = bytes(65_000)
            archive.writestr(member, b"")
    return buffer.getvalue()


def png(values: Any, kind: str = "png", mode: str | None = None) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(values, np.uint8), mode).save(buffer, kind)
    return buffer.getvalue()


def huge_png() -> bytes:
    """A header of 100 000 x 100 000 pixels."""
    header = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 0, 0, 0, 0)
    chunks = b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0")), (b"IEND", b""))
    )
    return b"\x89PNG\r\n\x1a\n" + chunks


def segmentation(
    label_map: str = "background:0,0,0::\nliver:10,20,30::\n", pixels: Any = ((10, 20, 30),), **more: bytes
) -> bytes:
    picture = np.resize(np.asarray(pixels, np.uint8), (2, 4, 3))
    return zipped({"labelmap.txt": label_map.encode(), "SegmentationClass/one/frame_1.png": png(picture), **more})


ID_MASK = np.zeros((2, 4), np.uint8)
BOMB = "".join(f'<!ENTITY a{i} "' + f"&a{i - 1};" * 10 + '">' for i in range(1, 10))

# What is wrong with a file: (its contents, what the line says).
XML = {
    "cut short": (xml(box())[:-20], "no XML, or cut short"),
    "not annotations": (b"<svg/>", "its root is svg"),
    "a video's tracks": (b"<annotations><track/></annotations>", "CVAT for video"),
    "external entity":
        (xml("&e;", head='<!DOCTYPE a [<!ENTITY e SYSTEM "file:///etc/passwd">]>'), "document type or entities"),
    "billion laughs": (xml("&a9;", head=f'<!DOCTYPE a [<!ENTITY a0 "ha">{BOMB}]>'), "document type"),
    "unknown class": (xml(box("spleen")), "one/frame_1.png: class 'spleen' is unknown"),
    "unknown frame": (xml(box(), name="three/frame_1.png"), "three/frame_1.png is no frame"),
    "ambiguous frame": (xml(box(), name="frame_1.png"), "may be one/frame_1.png or two/frame_1.png"),
    "frame twice": (xml(box()).replace(b"</annotations>", xml(box())[len("<annotations>") :]), "there twice"),
    "another size": (xml(box(), size='width="8" height="4"'), "8 x 4 pixels, where 4 x 2 went out"),
    "no size": (xml(box(), size=""), "image without width"),
    "size of letters": (xml(box(), size='width="x" height="2"'), "no number"),
    "size without end": (xml(box(), size='width="inf" height="2"'), "no number"),
    "no label": (xml("<box/>"), "box without label"),
    "shape of no pixels": (xml('<points label="liver" points="1,1"/>'), "points 'liver' has no pixels"),
    "mask out of the frame": (xml(mask(left="3")), "leaves the frame"),
    "mask of minus one": (xml(mask(top="-1")), "leaves the frame"),
    "runs too short": (xml(mask(rle="0, 3")), "runs of 3 pixels for a box of 2 x 2"),
    "runs backwards": (xml(mask(rle="8, -4")), "or backwards, in a box of 2 x 2"),
    "runs of more than there is": (xml(mask(rle=f"0, {2**62}, {2**62}, 4")), "a run of 46116860184273"),
    "runs of no number": (xml(mask(rle="9" * 5000)), "a damaged mask"),
    "point of far away": (xml('<polygon label="liver" points="-1e308,0;1e308,1;0,-1e308"/>'), "number, or far outside"),
    "turned without end": (xml(box(corners='xtl="0" ytl="0" xbr="2" ybr="2" rotation="1e999"')), "no number"),
    "attributes without end":
        (xml("<box " + " ".join(f'a{i}=""' for i in range(2000)) + "/>"), "an element of more than 1000 attributes"),
    "shapes without end": (xml("<box/>" * 500_001), "more than 500000 shapes"),
    "another encoding": (xml(box()).decode().encode("utf-16"), "no XML of UTF-8"),
    "runs of letters": (xml(mask(rle="a")), "damaged mask"),
    "two points": (xml('<polygon label="liver" points="0,0;1,1"/>'), "three points or more"),
    "point of nan": (xml('<polygon label="liver" points="0,0;1,1;nan,0"/>'), "damaged polygon"),
    "half a point": (xml('<polygon label="liver" points="0,0;1,1;3"/>'), "damaged polygon"),
    "window out of the frame": (xml(box("annotate", 'xtl="0" ytl="0" xbr="9" ybr="2"')), "'annotate' leaves the frame"),
    "nothing annotated": (xml(), "nothing is annotated"),
}  # fmt: skip
JSON = {
    "no JSON": (tasks(region())[:-5], "no JSON list of tasks, or cut short"),
    "lists without end": (b'[{"data": [' + b"[]," * 500_001 + b"1]}]", "more than 500000 lists"),
    "one frame without end": (b'[{"data": "' + b"a" * (17 << 20) + b'"}]', "more than 16 MB of one frame"),
    "image of a query alone": (tasks(region(), data={"image": "?id=5"}), " is no frame that went out"),
    "image of half an address": (tasks(region(), data={"image": "http://["}), "http://[ is no frame"),
    "rotation that formats": (tasks(region(rotation="%50000000d")), "where a number should be"),
    "picture's rotation that formats": (tasks(region() | {"image_rotation": "%50000000d"}), "where a number should be"),
    "corner that repeats": (tasks(region(x="aaaa")), "'aaaa' where a number should be"),
    "corner of yes": (tasks(region(x=True)), "'True' where a number should be"),
    "corner of nan": (tasks(region(x=float("nan"))), "where a number should be"),
    "brush of so many zeros": (tasks(region("brushlabels", format="rle", rle=20_000_000)), "its head"),
    "brush of large numbers": (tasks(region("brushlabels", format="rle", rle=[0, 0, 0, 32, 999, 0, 0])), "damaged"),
    "points that are text": (tasks(region("polygonlabels", points="abc")), "no list of two numbers"),
    "class that is none": (tasks(region(rectanglelabels=[["liver"]])), "a region with 1 classes"),
    "classes that are a number": (tasks(region(rectanglelabels=5)), "no list of classes"),
    "kind that is a list": (tasks(region() | {"type": []}), "damaged annotation"),
    "annotation that is none": (tasks(annotations=[5]), "damaged annotation"),
    "ids of two kinds": (tasks(annotations=[{"id": 1, "result": []}, {"id": "a", "result": []}]), "damaged"),
    "nested without end": (b"[" * 100_000, "no JSON"),
    "JSON-MIN": (b'[{"image": "one/frame_1.png"}]', "not JSON-MIN"),
    "no list": (b"{}", "no JSON list of tasks"),
    "mappings nested without end": (b"[" + b'{"a":' * 100_000, "no JSON list of tasks"),
    "a list of lists": (b"[[]]", "no mapping at byte 1"),
    "more after the end": (tasks(region()) + b"]", "more after its end"),
    "text that is no UTF-8": (b'[{"data": "\xff"}]', "no JSON list of tasks"),
    "task of no image": (tasks(region(), data={"text": "x"}), "data has no image"),
    "task of an unknown frame": (tasks(region(), data={"image": "x.png"}), "x.png is no frame"),
    "task twice": (json.dumps(json.loads(tasks(region())) * 2).encode(), "there twice"),
    "task of an unknown class": (tasks(region(rectanglelabels=["spleen"])), "class 'spleen' is unknown"),
    "region of no class": (tasks(region(rectanglelabels=[])), "a region with 0 classes"),
    "region of no pixels": (tasks(region("keypointlabels")), "type keypointlabels"),
    "region of another size": (tasks(region() | {"original_width": 5}), "5 x 2 pixels"),
    "region of no size": (tasks({"type": "brushlabels", "value": {}}), "no 'original_width'"),
    "turned picture": (tasks(region() | {"image_rotation": 90}), "turned picture"),
    "brush cut short": (tasks(region("brushlabels", format="rle", rle=[0, 0, 0, 32])), "its head"),
    "brush of another size": (tasks(region("brushlabels", format="rle", rle=[255] * 12)), "a code of 4294967295 words"),
    "brush of text": (tasks(region("brushlabels", format="rle", rle="x")), "damaged annotation"),
    "no annotation": (tasks(annotations=[]), "nothing is annotated"),
}  # fmt: skip
ZIP = {
    "damaged zip": (zipped({"annotations.xml": xml(box())})[:-30], "damaged zip"),
    "zip that is none": (b"hello", "damaged zip"),
    "flipped bytes":
        (bytes(b ^ 255 * (60 <= at < 70) for at, b in enumerate(zipped({"a.xml": xml(box() * 20)}))), "damaged zip"),
    "path that leaves": (zipped({"../../annotations.xml": xml(box())}), "leaves the folder"),
    "path from the root": (zipped({"/etc/annotations.xml": xml(box())}), "leaves the folder"),
    "path on a drive": (zipped({"c:\\annotations.xml": xml(box())}), "leaves the folder"),
    "two exports": (zipped({"a.xml": xml(box()), "b.xml": xml(box())}), "one export at a time"),
    "bzip2": (zipped({"a.xml": xml(box())}, zipfile.ZIP_BZIP2), "compressed as no annotation tool does"),
    "LZMA": (zipped({"a.xml": xml(box())}, zipfile.ZIP_LZMA), "compressed as no annotation tool does"),
    "member of a dot": (zipped({".": b"x"}), "nothing is annotated"),
    "name that is no UTF-8":
        (zipped({"é.xml": xml(box())}).replace("é".encode(), b"\xff\xfe"), "a damaged zip ('utf-8' codec can't decode"),
    "mask too large for its frame":
        (zipped({"one/frame_1.png": png(ID_MASK) + bytes(2 << 20)}), "over the limit of 1,048,640 bytes"),
    "members too many": (long_list(), "damaged zip (its list of members is too long)"),
    "PostScript": (zipped({"one/frame_1.png": png(np.zeros((2, 4, 3)), "eps")}), "not a picture"),
    "PDF, GIF, PPM": (zipped({"one/frame_1.png": png(ID_MASK, "ppm")}), "not a picture"),
    "empty zip": (zipped({}), "nothing is annotated"),
    "zip bomb": (zipped({"one/frame_1.png": huge_png()}), "too many pixels"),
    "no label map": (zipped({"SegmentationClass/x.png": b""}), "without labelmap.txt"),
    "label map of nothing": (segmentation("liver\n"), "'liver' is no label"),
    "label map of long numbers": (segmentation(f"liver:{'1' * 5000},2,3::\n"), "is no label"),
    "two labels of one colour": (segmentation("liver:1,2,3::\npolyp:1,2,3::\n"), "one colour"),
    "colour of no label": (segmentation(pixels=(1, 2, 3)), "colour (1, 2, 3) is not in labelmap.txt"),
    "label of no class": (segmentation("spleen:10,20,30::\n"), "class 'spleen' is unknown"),
    "masks of nothing": (segmentation(pixels=(0, 0, 0)), "nothing is annotated"),
    "id of no class": (zipped({"one/frame_1.png": png(ID_MASK + 2)}), "class id 2 is out of range"),
    "mask of colours": (zipped({"one/frame_1.png": png([[[1, 2, 3]] * 4] * 2)}), "--palette FILE names the class"),
    "mask of another size": (zipped({"one/frame_1.png": png(ID_MASK.T)}), "2 x 4 pixels, where 4 x 2"),
    "mask as JPEG": (zipped({"one/frame_1.png": png(ID_MASK, "jpeg")}), "JPEG data"),
    "mask cut short": (zipped({"one/frame_1.png": png(ID_MASK)[:-25]}), "damaged or cut short"),
    "mask that is text": (zipped({"one/frame_1.png": b"hello"}), "not a picture"),
    "masks of one frame":
        (zipped({"one/frame_1.png": png(ID_MASK), "one/frame_1.bmp": png(ID_MASK, "bmp")}), "has two masks"),
    "notes beside the masks": (zipped({"notes.txt": b"x"}), "not a picture by its extension"),
}  # fmt: skip
BAD = [(f"a.{kind}", *one) for kind, table in (("xml", XML), ("json", JSON), ("zip", ZIP)) for one in table.items()]


@pytest.mark.parametrize(("file", "contents", "says"), [(f, *case) for f, _, case in BAD], ids=[n for _, n, _ in BAD])
def test_one_line_names_it(tmp_path: Path, file: str, contents: bytes, says: str) -> None:
    path = tmp_path / file
    path.write_bytes(contents)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError) as caught:
        list(read_export(path, reading_of(FRAMES, CLASSES)))
    assert says in str(caught.value)
    assert str(path) in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before


def test_arguments_are_checked(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        list(read_export(tmp_path / "a.zip", reading_of(FRAMES, CLASSES)))
    with pytest.raises(UserError, match=r"--background: class 'nothing' is unknown"):
        reading_of(FRAMES, CLASSES, background="nothing")
    with pytest.raises(UserError, match=r"x\.png is no frame"):
        reading_of(FRAMES, CLASSES, finished=["x.png"])
    palette = tmp_path / "palette.txt"
    for text, says in (
        ("liver 1 2", "give lines like"),
        ("liver 1 2 3\npolyp 1 2 3", "there twice"),
        ("a 1 2 3", "'a'"),
    ):
        palette.write_text(text)
        with pytest.raises(UserError, match=says):
            reading_of(FRAMES, CLASSES, palette=palette)
    palette.write_text("liver 1 2 3")
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "frame_1.png").write_bytes(png([[[1, 2, 4]] * 4] * 2))
    palette.rename(tmp_path / ".palette.txt")
    with pytest.raises(UserError, match=r"colour \(1, 2, 4\) is not in the palette"):
        list(read_export(tmp_path, reading_of(FRAMES, CLASSES, palette=tmp_path / ".palette.txt")))


def test_a_clock_in_a_name_is_no_drive(tmp_path: Path) -> None:
    (tmp_path / "a.zip").write_bytes(zipped({"10:30:01.png": png(ID_MASK)}))
    (frame,) = read_export(tmp_path / "a.zip", reading_of([ExpectedFrame("a", "10:30:01.png", (2, 4))], CLASSES))
    assert frame.id == "a"


def test_what_no_reader_foresaw_is_one_line_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.xml"
    path.write_bytes(xml(box()))
    for error, says in (
        (ZeroDivisionError(), r"could not be understood \(ZeroDivisionError\)"),
        (MemoryError(), "more memory"),
    ):

        def fail(*_: Any, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr("alges_fast.annotation.imports.read_cvat_images", fail)
        with pytest.raises(UserError, match=says) as caught:
            list(read_export(path, reading_of(FRAMES, CLASSES)))
        assert str(path) in str(caught.value)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.xml")
    with pytest.raises(UserError, match="neither a file nor a folder"):
        list(read_export(tmp_path / "a.xml", reading_of(FRAMES, CLASSES)))
