"""A user's trained model from what they have: an exported file, a function, or an architecture and its weights.

    model.pt2                      torch.export
    model.ts, model.pt             TorchScript (converted to torch.export)
    package.module:function        called without arguments, returns an nn.Module; the folder of the command is searched
    model.safetensors              saved by `alges_fast.run --keep_models`, which says what it is; or, with the
                                   architecture's name, weights saved by safetensors.torch.save_model

Nothing is unpickled, not even where torch.export.load would. But a program is a program: an exported model runs what
its author put into it, like the function.
"""

from __future__ import annotations

import importlib
import os
import pickle
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from alges_fast.errors import UserError, one_line
from alges_fast.models.saved import load, read_card
from alges_fast.normalisation import Normalisation

_aten = torch.ops.aten
_LAYERS = (
    _aten.conv1d.default,
    _aten.conv2d.default,
    _aten.conv3d.default,
    _aten.convolution.default,
    _aten.linear.default,
)


def load_model(
    name: str, *, image_size: int, build: Callable[[int], nn.Module], encoder_weights: str | None = None
) -> tuple[nn.Module, int | None]:
    """The model, and the number of images it takes at a time where that is fixed.

    Args:
        name: what --model was given.
        image_size: S; the model is given (B, 3, S, S).
        build: the architecture with so many classes, for a state file that does not say what it is.
        encoder_weights: where a frozen encoder's weights are, if elsewhere than its file says.

    Raises:
        UserError: it cannot be loaded, in one line that names it and the remedy.
    """
    path = Path(name)
    suffix = path.suffix.lower()
    if suffix in (".pt2", ".ts", ".pt", ".pth", ".jit", ".safetensors"):
        if not path.is_file():
            raise UserError(f"{name}: no such file: give the model's file with --model")
        if suffix == ".safetensors":
            card = read_card(path)
            return (_from_state(path, build) if card is None else load(path, card, encoder_weights)), None
        return _from_export(path) if suffix == ".pt2" else _from_torchscript(path, image_size)
    if ":" in name:
        return _from_function(name), None
    raise UserError(f"{name}: not a model: give a file (.pt2, .ts, .pt, .safetensors) or package.module:function")


def normalisation_in(name: str) -> Normalisation | None:
    """What a model's file says that its images must be like; None where it does not say. Raises UserError."""
    path = Path(name)
    card = read_card(path) if path.suffix.lower() == ".safetensors" and path.is_file() else None
    return None if card is None else card.normalisation


def _from_state(path: Path, build: Callable[[int], nn.Module]) -> nn.Module:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state = load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: not a whole safetensors file ({one_line(error)}): save it again") from None
    # The last layer's weight has a row per class; state dicts keep the order in which layers were made.
    heads = [value for key, value in state.items() if "segmentation_head" in key and value.ndim == 4]
    if not heads:
        raise UserError(f"{path}: has no segmentation_head: give the state of a segmentation-models-pytorch model")
    model = build(len(heads[-1]))
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise UserError(
            f"{path}: the weights do not fit this architecture ({one_line(error)[:200]}): give the --architecture, "
            "--encoder and --head_kernel it was trained with"
        ) from None
    return model


def _from_function(name: str) -> nn.Module:
    module_name, _, function_name = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except Exception as error:  # whatever the user's module does when it is imported
        what = f"{type(error).__name__}: {one_line(error)}"
        raise UserError(f"{name}: cannot be imported ({what}): give package.module:function") from error
    try:
        model = function()
    except Exception as error:
        raise UserError(f"{name}: raised {type(error).__name__}: {one_line(error)}: mend the function") from error
    if not isinstance(model, nn.Module):
        raise UserError(f"{name}: returned a {type(model).__name__}: it must return a torch.nn.Module")
    return model


def _from_export(path: Path) -> tuple[nn.Module, int | None]:
    _check_export(path)
    try:
        with _plain_tensors_alone():
            program = torch.export.load(path)
        return _as_modules(program)
    except pickle.UnpicklingError:
        raise UserError(f"{path}: {_PICKLED}") from None
    except (RuntimeError, ValueError, KeyError, OSError, zipfile.BadZipFile) as error:
        raise UserError(
            f"{path}: not a torch.export file of this torch ({one_line(error)[:200]}): export it again"
        ) from None


_PICKLED = "holds pickled objects, which could run anything and are not read: export the model without them"


def _check_export(path: Path) -> None:
    """Refuse what torch.export.load would unpickle, or load as machine code, without asking; seen with its own reader,
    since two readers of zips may see two archives in one file. Raises UserError."""
    try:
        names = torch._C.PyTorchFileReader(str(path)).get_all_records()
    except RuntimeError as error:
        raise UserError(f"{path}: not a torch.export file ({one_line(error)[:120]}): export it again") from None
    if any(kind in name for name in names for kind in ("custom_obj_", "opaque_obj_")):
        raise UserError(f"{path}: {_PICKLED}")
    if any("aotinductor" in name for name in names):
        raise UserError(f"{path}: holds compiled machine code, which is not run: give what torch.export.save writes")


@contextmanager
def _plain_tensors_alone() -> Iterator[None]:
    """Every torch.load in it reads tensors and nothing else, whatever it is told."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _from_torchscript(path: Path, image_size: int) -> tuple[nn.Module, int | None]:
    try:
        scripted = torch.jit.load(path, map_location="cpu")
    except (RuntimeError, ValueError, OSError) as error:
        raise UserError(
            f"{path}: not TorchScript ({one_line(error)[:120]}). A pickled model or state is not read, since it could "
            "run anything: save the weights with safetensors, or export the model with torch.export"
        ) from None
    # Hooks do not reach into TorchScript, so its graph is turned into an exported program.
    try:
        from torch._export.converter import TS2EPConverter

        for batch in (2, 1):  # some graphs fix the batch of the example: then one image at a time fits every pool
            example = torch.zeros(batch, 3, image_size, image_size)
            model, fixed = _as_modules(TS2EPConverter(scripted.eval(), (example,)).convert())
            if fixed is None:
                break
        return model, fixed
    except Exception as error:  # private to torch: what it raises is not promised
        raise UserError(
            f"{path}: this TorchScript model cannot be taken apart ({one_line(error)[:200]}): export it with "
            "torch.export"
        ) from None


def _as_modules(program: torch.export.ExportedProgram) -> tuple[nn.Module, int | None]:
    """The program with its convolutions and linear layers as modules again, which `LastLayer` can find and hook."""
    graph_module = program.module()
    assert isinstance(graph_module, torch.fx.GraphModule)
    graph = graph_module.graph
    for node in list(graph.nodes):
        if node.op != "call_function" or node.target not in _LAYERS:
            continue
        weight_node, bias_node = node.args[1], node.args[2] if len(node.args) > 2 else None
        transposed = node.target == _aten.convolution.default and node.args[6]
        if transposed or weight_node.op != "get_attr" or (bias_node is not None and bias_node.op != "get_attr"):
            continue
        weight = _attribute(graph_module, weight_node.target)
        bias = None if bias_node is None else _attribute(graph_module, bias_node.target)
        with torch.device("meta"):  # the layer's own weights are never made
            layer = _layer(node, weight, bias is not None)
        layer.weight, layer.bias = _parameter(weight), None if bias is None else _parameter(bias)
        name = f"layer_{weight_node.target}".replace(".", "_")
        graph_module.add_submodule(name, layer)
        with graph.inserting_after(node):
            replacement = graph.call_module(name, (node.args[0],))
        node.replace_all_uses_with(replacement)
        graph.erase_node(node)
    graph_module.recompile()
    for name in ("train", "eval"):  # torch puts others there, which raise; a traced graph does the same in either mode
        vars(graph_module).pop(name, None)
    from torch.fx.experimental.symbolic_shapes import is_concrete_int

    images = next(node for node in graph.nodes if node.op == "placeholder").meta["val"]
    batch = images.shape[0]
    return graph_module, int(batch) if is_concrete_int(batch) else None


def _layer(node: torch.fx.Node, weight: torch.Tensor, bias: bool) -> Any:
    assert isinstance(node.target, torch._ops.OpOverload)
    arguments = node.target._schema.arguments
    given: dict[str, Any] = {argument.name: argument.default_value for argument in arguments}
    given |= dict(zip(given, node.args, strict=False)) | dict(node.kwargs)
    if node.target == _aten.linear.default:
        return nn.Linear(weight.shape[1], weight.shape[0], bias)
    axes = weight.ndim - 2
    shape: dict[str, Any] = {
        name: tuple(given[name]) * (axes if len(given[name]) == 1 else 1) for name in ("stride", "padding", "dilation")
    }
    convolution: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[axes - 1]
    groups = given["groups"]
    return convolution(
        weight.shape[1] * groups, weight.shape[0], tuple(weight.shape[2:]), groups=groups, bias=bias, **shape
    )


def _attribute(module: Any, path: str) -> torch.Tensor:
    for name in path.split("."):
        module = getattr(module, name)
    assert isinstance(module, torch.Tensor)
    return module


def _parameter(tensor: torch.Tensor) -> nn.Parameter:
    return tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor, requires_grad=False)
