"""Whatever form a trained model comes in, its gradient embeddings are those of the model it was made from."""

from __future__ import annotations

import contextlib
import io
import json
import pickle
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alges_fast import LastLayer
from alges_fast.annotation.models import load_model
from alges_fast.errors import UserError

SIZE = 16


class Small(nn.Module):
    """A network whose head works at half resolution, so that a tail follows the last layer."""

    def __init__(self, tail: bool) -> None:
        super().__init__()
        self.tail = tail
        self.body = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1, stride=2 if tail else 1), nn.BatchNorm2d(6), nn.ReLU())
        self.head = nn.Conv2d(6, 4, 1 if tail else 3, padding=0 if tail else 1)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.head(self.body(images))
        return F.interpolate(logits, scale_factor=2.0, mode="bilinear") if self.tail else logits


@pytest.fixture(params=[False, True], ids=["plain head", "bilinear tail"])
def model(request: pytest.FixtureRequest) -> nn.Module:
    torch.manual_seed(0)
    return Small(request.param).eval()


def never(n_classes: int) -> nn.Module:
    raise AssertionError("no architecture is built for a model that brings its own")


def same_embeddings(model: nn.Module, loaded: nn.Module, images: Tensor) -> None:
    outputs = ("image", "semantic", "entropy")
    expected = LastLayer.find(model, images).pixel_gradients(images, outputs=outputs)
    found = LastLayer.find(loaded, images).pixel_gradients(images, outputs=outputs)
    for name in outputs:
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), msg=lambda text: f"{name}: {text}")  # noqa: B023


def test_exported_program(model: nn.Module, tmp_path: Path) -> None:
    example = torch.randn(2, 3, SIZE, SIZE)
    program = torch.export.export(model, (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    torch.export.save(program, tmp_path / "model.pt2")
    loaded, batch = load_model(str(tmp_path / "model.pt2"), image_size=SIZE, build=never)
    assert batch is None
    same_embeddings(model, loaded, torch.randn(3, 3, SIZE, SIZE))
    torch.export.save(torch.export.export(model, (example,)), tmp_path / "model.pt2")
    _, batch = load_model(str(tmp_path / "model.pt2"), image_size=SIZE, build=never)
    assert batch == 2


@pytest.mark.parametrize("how", ["trace", "script"])
@pytest.mark.filterwarnings("ignore")
def test_torchscript(model: nn.Module, tmp_path: Path, how: str) -> None:
    scripted = torch.jit.trace(model, torch.randn(1, 3, SIZE, SIZE)) if how == "trace" else torch.jit.script(model)
    scripted.save(str(tmp_path / "model.ts"))
    loaded, batch = load_model(str(tmp_path / "model.ts"), image_size=SIZE, build=never)
    same_embeddings(model, loaded, torch.randn(batch or 3, 3, SIZE, SIZE))
    assert batch in (None, 1)


def test_function(model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_own_model.py").write_text("import torch\n\ndef make():\n    return torch.nn.Conv2d(3, 2, 1)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    loaded, batch = load_model("my_own_model:make", image_size=SIZE, build=never)
    assert isinstance(loaded, nn.Conv2d)
    assert batch is None
    with pytest.raises(UserError, match="cannot be imported"):
        load_model("my_own_model:absent", image_size=SIZE, build=never)


def test_state_of_an_architecture(tmp_path: Path) -> None:
    models = pytest.importorskip("alges_fast.models")
    safetensors = pytest.importorskip("safetensors.torch")

    def build(n_classes: int) -> nn.Module:
        built: nn.Module = models.build_model(num_classes=n_classes, seed=1)
        return built

    model = models.build_model(num_classes=5, seed=0).eval()
    safetensors.save_file(model.state_dict(), tmp_path / "model.safetensors")
    loaded, _ = load_model(str(tmp_path / "model.safetensors"), image_size=32, build=build)
    images = torch.randn(1, 3, 32, 32)
    torch.testing.assert_close(loaded.eval()(images), model(images))


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("absent.pt2", None, "no such file"),
        ("model.pt2", b"PK\x03\x04 not a zip", "not a torch.export file"),
        ("model.pt", b"\x80\x04\x95 a pickle", "A pickled model or state is not read"),
        ("model.safetensors", b"\x00" * 5, "not a whole safetensors file"),
        ("model.onnx", b"", "not a model"),
    ],
)
def test_what_is_no_model_is_named(tmp_path: Path, name: str, content: bytes | None, said: str) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError, match=said) as caught:
        load_model(str(path), image_size=SIZE, build=never)
    assert name in str(caught.value)


class Planted:
    """What a pickle can do when it is read: here, make a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def with_members(path: Path, members: dict[str, bytes]) -> None:
    """Give the zip at path these members, by the end of their name, or new ones beside its first."""
    with zipfile.ZipFile(path) as archive:
        all_members = {name: archive.read(name) for name in archive.namelist()}
    root = next(iter(all_members)).partition("/")[0]
    for end, contents in members.items():
        all_members[next((name for name in all_members if name.endswith(end)), f"{root}/{end}")] = contents
    with zipfile.ZipFile(path, "w") as archive:
        for name, contents in all_members.items():
            archive.writestr(name, contents)


@pytest.mark.parametrize("where", ["sample inputs", "weight", "constant", "custom object", "opaque object", "legacy"])
def test_nothing_in_an_exported_program_is_unpickled(model: nn.Module, tmp_path: Path, where: str) -> None:
    path, ran = tmp_path / "model.pt2", tmp_path / "ran"
    torch.export.save(torch.export.export(model, (torch.randn(2, 3, SIZE, SIZE),)), path)
    buffer = io.BytesIO()
    torch.save({"a": Planted(ran)}, buffer)
    saved, constants = buffer.getvalue(), "data/constants/model_constants_config.json"

    def config(name: str) -> bytes:
        facts = {"path_name": name, "is_param": False, "use_pickle": True, "tensor_meta": None}
        return json.dumps({"config": {"x": facts}}).encode()

    members = {
        "sample inputs": {"data/sample_inputs/model.pt": saved},
        "weight": {"data/weights/model_weights_config.json": config("weight_9"), "data/weights/weight_9": saved},
        "constant": {constants: config("tensor_9"), "data/constants/tensor_9": saved},
        "custom object": {constants: config("custom_obj_9"), "data/constants/custom_obj_9": saved},
        "opaque object": {constants: config("opaque_obj_9"), "data/constants/opaque_obj_9": pickle.dumps(Planted(ran))},
        "legacy": {"data/constants/model.pt": saved},
    }
    with_members(path, members[where])
    with pytest.raises(UserError, match=r"model\.pt2: holds pickled objects"):
        load_model(str(path), image_size=SIZE, build=never)
    assert not ran.exists()
    if where != "custom object":  # torch's own reader of those knows no Python objects
        with contextlib.suppress(Exception):
            torch.export.load(path)
        assert ran.exists(), "the input plants nothing, so the test shows nothing"


def test_machine_code_in_an_exported_program_is_not_run(model: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    torch.export.save(torch.export.export(model, (torch.randn(2, 3, SIZE, SIZE),)), path)
    with_members(path, {"data/aotinductor/model/x.so": b"\x7fELF"})
    with pytest.raises(UserError, match="compiled machine code"):
        load_model(str(path), image_size=SIZE, build=never)
