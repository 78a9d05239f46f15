"""Running a model as it is: in eval mode, past whatever is compiled in it, up to or through one of its layers."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Pass:
    """What one forward pass leaves.

    Attributes:
        features: the layer's input, as the model gives it.
        output: the layer's output; a leaf of the logits' graph where the tail was recorded.
    """

    features: Tensor
    output: Tensor
    logits: Tensor


def run_up_to(model: nn.Module, name: str, layer: nn.Module, images: Tensor) -> Tensor:
    """The layer's input. The model stops there, so that an op which does the layer's work is the only one to do it."""
    inputs: list[Tensor] = []

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs.append(layer_input(args, kwargs))
        raise _Stop

    handle = layer.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        call_uncompiled(model, images)
    except _Stop:
        pass
    finally:
        handle.remove()
    if not inputs:
        raise ValueError(f"layer {name!r} is not called for images of shape {tuple(images.shape)}")
    _check_batch(name, inputs[0], images)
    return inputs[0]


def run_through(model: nn.Module, name: str, layer: nn.Module, images: Tensor, *, record_tail: bool) -> Pass:
    """One whole forward pass; with `record_tail` the logits' graph begins at the layer's output."""
    if not record_tail:
        return _run_through(model, name, layer, images, record_tail=False, copy_input=False)
    with parameters_require_grad(model, False):
        return _run_through(model, name, layer, images, record_tail=True, copy_input=False)


def _run_through(
    model: nn.Module, name: str, layer: nn.Module, images: Tensor, *, record_tail: bool, copy_input: bool
) -> Pass:
    seen: list[tuple[Tensor, int, Tensor]] = []

    def capture(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
        features = layer_input(args, kwargs)
        features = features.clone() if copy_input else features
        version = features._version
        if not record_tail:
            seen.append((features, version, output))
            return None
        leaf = output.detach().requires_grad_()
        seen.append((features, version, leaf))
        torch.set_grad_enabled(True)
        return leaf.clone()  # what follows may work in place, which autograd forbids on a leaf

    handle = layer.register_forward_hook(capture, with_kwargs=True)
    try:
        with torch.no_grad():
            logits = logits_of(call_uncompiled(model, images))
    finally:
        handle.remove()
    if len(seen) != 1:
        raise ValueError(f"layer {name!r} is called {len(seen)} times in one forward pass, expected once")
    features, version, output = seen[0]
    if features._version != version:  # the model went on to work in place on the layer's input
        return _run_through(model, name, layer, images, record_tail=record_tail, copy_input=True)
    _check_batch(name, features, images)
    if record_tail and not logits.requires_grad:
        raise ValueError(f"the logits do not depend on the output of {name!r}, as far as autograd can see")
    return Pass(features, output, logits)


def _check_batch(name: str, features: Tensor, images: Tensor) -> None:
    if len(features) != len(images):
        raise ValueError(
            f"layer {name!r} gets an input of shape {tuple(features.shape)} for {len(images)} images: images must stay "
            "apart along its first axis"
        )


class _Stop(BaseException):
    """Ends a forward pass at the last layer. Not an Exception: a model's own `except Exception` must not swallow it."""


def logits_of(output: object) -> Tensor:
    """The logits in what a model returns."""
    logits: object = output
    if isinstance(output, Mapping):
        logits = next((output[key] for key in ("out", "logits") if key in output), None)
    elif hasattr(output, "logits"):
        logits = output.logits
    elif isinstance(output, (tuple, list)) and output:
        logits = output[0]
    if not isinstance(logits, Tensor) or logits.ndim < 3 or not logits.is_floating_point():
        what = f"a {type(output).__name__}"
        if isinstance(logits, Tensor):
            what = f"{logits.dtype} values of shape {tuple(logits.shape)}"
        elif isinstance(output, Mapping):
            what += f" of {', '.join(map(repr, output)) or 'nothing'}"
        raise ValueError(
            "the model must return logits (B, K, *spatial), a mapping with them under 'out' or 'logits', an object "
            f"with .logits, or a sequence that starts with them; it returned {what}"
        )
    return logits


def unwrapped(model: nn.Module) -> nn.Module:
    """The user's own module: hooks do not reach into what torch.compile made, nor into replicas on other devices."""
    inner = getattr(model, "_orig_mod", None)
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        inner = model.module
    return unwrapped(inner) if isinstance(inner, nn.Module) else model


def call_uncompiled(model: nn.Module, images: Tensor) -> Any:
    """Call the model with whatever is compiled in it left uncompiled, so that hooks are called."""
    compiled = "torch._dynamo" in sys.modules  # else nothing is, and importing it takes seconds
    with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
        return model(images)


def layer_input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The input among the arguments of a layer's call."""
    given: Tensor = args[0] if args else kwargs["input"]
    return given


def outside_inference_mode(tensor: Tensor) -> Tensor:
    """Autograd may not keep a tensor that was made in inference mode."""
    return tensor.clone() if tensor.is_inference() else tensor


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside, every module's own mode afterwards."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def parameters_require_grad(model: nn.Module, flag: bool) -> Iterator[None]:
    """Whether the model's parameters require gradients inside; each as it was afterwards."""
    changed = [p for p in model.parameters() if p.requires_grad != flag and p.is_floating_point()]
    for parameter in changed:
        parameter.requires_grad_(flag)
    try:
        yield
    finally:
        for parameter in changed:
            parameter.requires_grad_(not flag)


@contextmanager
def resizes_in_one_operation() -> Iterator[None]:
    """As autograd has it, not the dozen that stand in for it where a GPU is to work deterministically."""
    if not torch.are_deterministic_algorithms_enabled():
        yield  # to say so would import torch's compiler, which takes seconds
        return
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(False)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(True, warn_only=warn_only)


@contextmanager
def buffers_kept(model: nn.Module) -> Iterator[None]:
    """Some models count or average in their buffers even in eval mode."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, copy in before:
                buffer.copy_(copy)
