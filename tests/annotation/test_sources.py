"""Frames are found in folders, lists and videos, and read as what they are."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image, ImageOps

from alges_fast import atomic
from alges_fast.annotation.decoded import decoded_images
from alges_fast.annotation.picks import PickedFrame
from alges_fast.annotation.sources import FrameReader, LeftOut, PoolFrame, frame_sizes, list_frames
from alges_fast.annotation.writing import _original, check_names
from alges_fast.data.frame_pool import FramePool
from alges_fast.errors import UserError

RATE, SECONDS = 10, 6


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALGES_FAST_CACHE", str(tmp_path / "cache"))


def decode_frames(frames: list[PoolFrame], size: int, left_out: LeftOut) -> FramePool:
    read, images = decoded_images(frames, size, left_out)
    used = [at for at, frame in enumerate(read) if not left_out.has(frame.id)]
    return FramePool([read[at].id for at in used], lambda position: torch.from_numpy(np.array(images[used[position]])))


def picture(path: Path, value: int = 100) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (20, 12), (value, value, value)).save(path)
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frame i filled with grey 4 i."""
    path = tmp_path_factory.mktemp("video") / "theatre.mp4"
    return write_video(path, [np.full((48, 64, 3), 4 * i, np.uint8) for i in range(RATE * SECONDS)])


def write_video(path: Path, pictures: Sequence[np.ndarray], *, turned: int = 0, codec: str = "mpeg4") -> Path:
    """Ten frames a second, a key frame every twelve; to be shown turned to the left by so many degrees."""
    av = pytest.importorskip("av", reason="PyAV is not installed")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE)
        if turned:
            stream.set_display_rotation(turned)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = 64, 48, "yuv420p", 12
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_a_folder_is_searched_and_numbers_sort_as_numbers(tmp_path: Path) -> None:
    for name in ("v1/frame_10.png", "v1/frame_9.png", "v2/a_3.jpg", "alone.png"):
        picture(tmp_path / name)
    picture(tmp_path / ".hidden" / "frame_1.png")
    (tmp_path / "notes.txt").write_text("not a frame")
    (tmp_path / "v1" / "loop").symlink_to(tmp_path)
    frames = list_frames(tmp_path)
    assert [frame.id for frame in frames] == ["alone.png", "v1/frame_9.png", "v1/frame_10.png", "v2/a_3.jpg"]
    assert [(frame.video, frame.order) for frame in frames[1:]] == [("v1/frame", 9), ("v1/frame", 10), ("v2/a", 3)]


def test_a_list_keeps_its_order(tmp_path: Path) -> None:
    picture(tmp_path / "b_2.png")
    picture(tmp_path / "a_1.png")
    for content in (b"# chosen by hand\nb_2.png\n\na_1.png\n", b"\xef\xbb\xbfb_2.png\r\na_1.png\r\n"):  # or of Windows
        (tmp_path / "list.txt").write_bytes(content)
        assert [frame.id for frame in list_frames(tmp_path / "list.txt")] == ["b_2.png", "a_1.png"]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda root: root / "absent", "no such file or folder"),
        (lambda root: root, "no frames in it"),
        (lambda root: _write(root / "list.txt", "gone.png\n"), "which is no file"),
        (lambda root: _write(root / "list.txt", f"{picture(root / 'a.png').name}\na.png\n"), "twice"),
        (lambda root: _write(root / "data.bin", b"\xff\xfe\x00\x80"), "neither a folder"),
    ],
)
def test_what_cannot_be_a_pool_is_named(tmp_path: Path, make: object, said: str) -> None:
    with pytest.raises(UserError, match=said):
        list_frames(make(tmp_path))  # type: ignore[operator]


def _write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", None])
def test_a_damaged_picture_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = picture(tmp_path / "frame_1.png")
    path.write_bytes(path.read_bytes()[:60] if content is None else content)
    with pytest.raises(UserError, match=r"frame_1\.png"):
        FrameReader().read(list_frames(tmp_path)[0])


def test_a_video_gives_frames_at_the_rate_asked_for(video: Path) -> None:
    frames = list_frames(video, fps=2)
    assert [frame.order for frame in frames] == pytest.approx(np.arange(0, SECONDS, 0.5))
    assert frames[3].id == "theatre.mp4@00001.500s"
    assert len(list_frames(video, fps=1000)) == RATE * SECONDS  # never a frame twice
    pool = decode_frames(frames, 32, LeftOut("stop"))
    for frame, (name, image) in zip(frames, (pool[i] for i in range(len(pool))), strict=True):
        assert name == frame.id
        assert image.shape == (3, 32, 32)
        assert float(image.float().mean()) == pytest.approx(4 * RATE * frame.order, abs=4)


def test_a_picked_frame_is_decoded_again_whatever_the_order(video: Path) -> None:
    frames = list_frames(video, fps=5)
    in_order = FrameReader()
    expected = [in_order.read(frame) for frame in frames]
    reader = FrameReader()
    for i in np.random.default_rng(0).permutation(len(frames)):
        np.testing.assert_array_equal(reader.read(frames[i]), expected[i])


@pytest.mark.parametrize("turned", [-90, 90, 180])
def test_a_video_is_shown_as_it_was_held(tmp_path: Path, turned: int) -> None:
    """A phone's: lying pictures, and how a player turns them; also beyond a seek."""
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:24, :32] = 200  # above and left
    path = write_video(tmp_path / "phone.mov", [picture] * (RATE * SECONDS), turned=turned)
    frames = list_frames(path)
    shown = np.rot90(picture, turned // 90)
    assert set(frame_sizes(frames, LeftOut("stop")).values()) == {shown.shape[:2]}
    reader = FrameReader()
    for frame in (frames[0], frames[-1], frames[1]):
        found = reader.read(frame)
        assert found.shape == shown.shape
        assert np.abs(found.astype(int) - shown).mean() < 8
        assert _original(PickedFrame(frame, [0], None, found, found[..., 0], None))


@pytest.mark.parametrize("suffix", [".ts", ".mts", ".M2TS"])
def test_a_camcorders_video_is_one(tmp_path: Path, suffix: str) -> None:
    plain = write_video(tmp_path / "a.ts", [np.full((48, 64, 3), 99, np.uint8)] * RATE * 2, codec="mpeg2video")
    plain.rename(tmp_path / f"a{suffix}")
    assert [frame.id for frame in list_frames(tmp_path)] == [f"a{suffix}@00000.000s", f"a{suffix}@00001.000s"]


@pytest.mark.parametrize(("name", "remedy"), [("a.gif", "make a video"), ("b.DCM", "make pictures")])
def test_what_frames_could_be_made_of_is_no_frame(tmp_path: Path, name: str, remedy: str) -> None:
    picture(tmp_path / "c.png")
    (tmp_path / name).write_bytes(b"GIF89a")
    (tmp_path / "list.txt").write_text(f"c.png\n{name}\n")
    for source in (tmp_path, tmp_path / "list.txt"):
        left_out = LeftOut("skip")
        assert [frame.id for frame in list_frames(source, left_out=left_out)] == ["c.png"]
        assert remedy in left_out.by_file()[0]
        with pytest.raises(UserError, match=remedy):
            list_frames(source)


def test_a_file_that_only_claims_to_be_a_video_is_named(tmp_path: Path) -> None:
    pytest.importorskip("av", reason="PyAV is not installed")
    path = _write(tmp_path / "broken.mp4", b"no video at all")
    with pytest.raises(UserError, match=r"broken\.mp4: not a video"):
        list_frames(path)
    picture(tmp_path / "a_1.png")
    left_out = LeftOut("skip")
    assert [frame.id for frame in list_frames(tmp_path, left_out=left_out)] == ["a_1.png"]
    assert left_out.by_file()[0].startswith(f"{path}: not a video")
    assert [left_out.has(line) for line in ("broken.mp4@00001.000s", "a_1.png")] == [True, False]


def test_of_a_video_that_is_damaged_in_the_middle_the_rest_is_read(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (RATE * SECONDS, 48, 64, 3)).astype(np.uint8)
    path = write_video(tmp_path / "noise.mp4", noise)
    frames = list_frames(path, fps=5)
    whole = dict(decode_frames(frames, 32, LeftOut("stop")))
    contents = path.read_bytes()
    middle = len(contents) // 2
    path.write_bytes(contents[:middle] + bytes(2000) + contents[middle + 2000 :])
    with pytest.raises(UserError, match=r"noise\.mp4: damaged or cut short .*--on_bad_image skip"):
        decode_frames(frames, 32, LeftOut("stop"))
    left_out = LeftOut("skip")
    found = dict(decode_frames(frames, 32, left_out))
    n = len(left_out.reasons)
    assert 0 < n < 10
    assert left_out.by_file() == [f"{next(iter(left_out.reasons.values()))} ({n} frames)"]
    assert list(found) == [frame.id for frame in frames if frame.id not in left_out.reasons]
    assert frames[-1].id in found
    for id, image in found.items():
        assert image.float().sub(whole[id].float()).abs().mean() < 40


def test_a_pool_is_decoded_once_and_again_when_a_file_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        picture(tmp_path / "pool" / f"a_{number}.png")
    (tmp_path / "pool" / "a_3.png").write_bytes(b"")
    frames = list_frames(tmp_path / "pool")
    first_left_out, left_out = LeftOut("skip"), LeftOut("skip")
    first = decode_frames(frames, 16, first_left_out)
    images = list(map(torch.clone, (image for _, image in first)))
    with monkeypatch.context() as patch:
        patch.setattr(FrameReader, "read", lambda *_: pytest.fail("decoded again"))
        again = decode_frames(frames, 16, left_out)
    assert again.ids == first.ids == ("a_0.png", "a_1.png", "a_2.png", "a_4.png")
    assert left_out.reasons == first_left_out.reasons
    assert list(left_out.reasons) == ["a_3.png"]
    assert all(torch.equal(before, after) for before, (_, after) in zip(images, again, strict=True))
    with pytest.raises(UserError, match=r"a_3\.png"):
        decode_frames(frames, 16, LeftOut("stop"))
    (pixels,) = (tmp_path / "cache").glob("pool-*/images.rows")
    pixels.write_bytes(pixels.read_bytes()[:-1])  # cut short by a full disk or a careless copy
    assert torch.equal(decode_frames(frames, 16, left_out)[3][1], images[3])
    picture(tmp_path / "pool" / "a_3.png")
    assert decode_frames(frames, 16, LeftOut("stop")).ids == tuple(frame.id for frame in frames)


def test_pictures_of_more_than_8_bits_are_not_taken_for_white(tmp_path: Path) -> None:
    Image.fromarray(np.full((12, 20), 300, np.uint16)).save(tmp_path / "deep_1.png")
    with pytest.raises(UserError, match=r"deep_1\.png: I;16 pixels, more than 8 bits"):
        FrameReader().read(list_frames(tmp_path)[0])


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_a_photograph_is_upright_for_the_model_and_the_annotator(tmp_path: Path, suffix: str) -> None:
    """However it lies in its file: masks fit whatever a tool makes of EXIF, as what goes out has none."""
    straight = np.zeros((40, 64, 3), np.uint8)
    straight[:20, :32] = 250  # top left
    for number, way in enumerate([None, *list(Image.Transpose)]):
        lying = Image.fromarray(straight) if way is None else Image.fromarray(straight).transpose(way)
        for orientation in range(10):
            exif = Image.Exif()
            exif[ExifTags.Base.Orientation] = orientation
            lying.save(tmp_path / f"{number}_{orientation}{suffix}", exif=exif)
    (tmp_path / "broken_1.jpg").write_bytes(_with_broken_exif(straight))
    frames = list_frames(tmp_path)
    sizes = frame_sizes(frames, LeftOut("stop"))
    for frame in frames:
        shown = FrameReader().read(frame)
        assert sizes[frame.id] == shown.shape[:2]
        with Image.open(frame.path) as picture:
            assert np.array_equal(shown, ImageOps.exif_transpose(picture).convert("RGB")) or "broken" in frame.id
        out = Image.open(io.BytesIO(_original(PickedFrame(frame, [0], None, shown, shown[..., 0], None))))
        assert out.size == shown.shape[1::-1] == ImageOps.exif_transpose(out).size
        assert np.abs(np.asarray(out.convert("RGB")).astype(int) - shown).mean() < 2


def _with_broken_exif(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "jpeg", exif=b"Exif\0\0XX\0*nonsense")
    return buffer.getvalue()


def test_what_is_left_out_is_found_by_its_windows_and_frames() -> None:
    left_out = LeftOut("skip", {f"op {n}/a@b.mp4": "torn" for n in range(100_000)})
    lines = [f"op {n}/a@b.mp4@00012.500s#0,0,8,8" for n in range(100_000)]
    assert all(map(left_out.has, lines))  # for ever, where each line were compared with each name
    assert not left_out.has("op 1/a@b.mp3@00012.500s")
    assert not left_out.has("op 1/a")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        (b"a\xff.png", "its name is no UTF-8"),
        (b"a\x1b[2J\n.png", "control characters"),
        (b"a" * 217 + b".png", "more than 220 bytes"),
        ("ä".encode() * 109 + b".png", "more than 220 bytes"),
    ],
)
def test_names_that_no_file_may_have_are_left_out(tmp_path: Path, name: bytes, why: str) -> None:
    picture(tmp_path / "good.png")
    (tmp_path / "good.png").rename(os.fsdecode(os.fsencode(tmp_path) + b"/" + name))
    picture(tmp_path / "good.png")
    left_out = LeftOut("skip")
    assert [frame.id for frame in list_frames(tmp_path, left_out=left_out)] == ["good.png"]
    ((named, reason),) = left_out.reasons.items()
    assert why in reason
    assert named.isprintable()
    assert reason.isprintable()
    with pytest.raises(UserError, match=why):
        list_frames(tmp_path)
    atomic.write_bytes(tmp_path / "labels" / f"{'a' * 216}.png@00012.500s.png.png", b"x")  # the longest


def test_names_that_differ_in_case_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = ["A.png", "a.png", "b/é.png", "b/e\u0301.png"]
    check_names(tmp_path, ids)
    with pytest.raises(UserError, match=r"x/a\.png and x/\./a\.png would both be"):
        check_names(tmp_path, ["x/A.png", "x/a.png", "x/./a.png"])
    monkeypatch.setattr(atomic, "folds_case", lambda folder: True)
    for two in (ids[:2], ids[2:]):
        with pytest.raises(UserError, match="would both be"):
            check_names(tmp_path, two)
    check_names(tmp_path, ["A.png", "x/a.png"])


def test_a_file_system_says_whether_it_folds_case(tmp_path: Path) -> None:
    (tmp_path / "Project.yaml").touch()
    folds = (tmp_path / "pROJECT.YAML").exists()
    assert atomic.folds_case(tmp_path) is folds
    assert atomic.folds_case(tmp_path / "not" / "there") is folds
    (tmp_path / "pROJECT.YAML").unlink(missing_ok=True)
    (tmp_path / "pROJECT.YAML").hardlink_to(tmp_path / "Project.yaml") if not folds else None
    assert atomic.folds_case(tmp_path) is True  # as one that folds would answer
