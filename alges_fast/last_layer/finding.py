"""Which layer makes a model's logits, and whether its gradient embedding is defined."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alges_fast.last_layer.layouts import CONVOLUTIONS, LAYERS, TRANSPOSED, channels_first, graph_nodes
from alges_fast.last_layer.running import call_uncompiled, layer_input, logits_of, parameters_require_grad


@dataclass(frozen=True, eq=False)
class Call:
    """A layer's call in the forward pass."""

    name: str
    module: nn.Module
    features: Tensor
    output: Tensor
    made_by: Any
    """Autograd's node behind the features; None where they are the images."""
    takes_images: bool
    """Whether the features are the model's own argument, untouched."""


@dataclass(frozen=True)
class Trace:
    """The layers' calls in order, those the logits are reached from directly, and the model's logits and batch size."""

    calls: list[Call]
    direct: list[Call]
    loose: list[str]
    """Parameters with two axes or more on the way from the direct layers to the logits: layers that are not modules."""
    logits: Tensor
    batch: int


def trace(model: nn.Module, example: Tensor) -> Trace:
    """Run the model with every layer's output replaced by a leaf: the logits' graph then ends at the last layers."""
    calls: list[Call] = []
    untouched = example._version
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, LAYERS):

                def record(
                    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any, name: str = name
                ) -> Tensor | None:
                    if not isinstance(output, Tensor) or not output.is_floating_point():
                        return None
                    torch.set_grad_enabled(True)  # a model's forward may be under torch.no_grad
                    leaf = output.detach().requires_grad_()
                    given = layer_input(args, kwargs)
                    of_images = given is example and example._version == untouched
                    calls.append(Call(name, module, given.detach().clone(), leaf, given.grad_fn, of_images))
                    return leaf.clone()

                stack.callback(module.register_forward_hook(record, with_kwargs=True).remove)
        stack.enter_context(parameters_require_grad(model, True))
        stack.enter_context(torch.enable_grad())
        logits = logits_of(call_uncompiled(model, example))
        reached = {id(node.variable) for node in graph_nodes(logits) if hasattr(node, "variable")}
    return Trace(
        calls=calls,
        direct=[call for call in calls if id(call.output) in reached],
        loose=[name for name, value in model.named_parameters() if value.ndim >= 2 and id(value) in reached],
        logits=logits.detach(),
        batch=len(example),
    )


def choose(trace: Trace, name: str | None) -> Call:
    """The call that makes the logits, or that of the layer of this name.

    Raises:
        ValueError: there is none, or none that this method applies to; the message lists the candidates.
    """
    n_classes = trace.logits.shape[1]
    if not trace.logits.isfinite().all():
        raise ValueError(
            "the model makes a NaN or infinity of the example, so its layers cannot be told apart: check its weights, "
            "or give another image"
        )
    if n_classes == 1:
        raise ValueError(
            "the model has one output channel, and the softmax of one class is constant: its gradient is zero. Give "
            "the model a channel per class, background included"
        )
    if name is not None:
        named = [call for call in trace.calls if call.name == name]
        if not named:
            raise ValueError(f"name: no layer {name!r} is called in the forward pass. {_candidates(trace)}")
        chosen = named[-1]
    else:
        per_class = [call for call in trace.direct if channels_first(call.output, call.module).shape[1] == n_classes]
        if per_class:
            chosen = per_class[-1]
        elif len(trace.direct) == 1 and not trace.loose:
            chosen = trace.direct[0]
        else:
            why = "no convolution or linear layer with a channel per class leads straight to the logits"
            if trace.loose:
                why += f" (they use {', '.join(trace.loose)}, which is not in a convolution or linear module)"
            elif not trace.direct:
                why += ", as far as autograd sees (they may be detached, or made in torch.inference_mode)"
            raise ValueError(f"{why}; name the layer with name=. {_candidates(trace)}")
    reason = _unservable(chosen, trace)
    if reason is not None:
        raise ValueError(f"layer {chosen.name!r} cannot be used: {reason}. {_candidates(trace)}")
    return chosen


def hidden_layer(trace: Trace, last: Call) -> nn.Module | None:
    """The first of two layers of single pixels with a ReLU between them, where these are all that the model is."""
    if len(trace.calls) != 2 or trace.calls[1] is not last:
        return None
    hidden = trace.calls[0]
    if not hidden.takes_images or not all(_of_single_pixels(call.module) for call in trace.calls):
        return None
    nodes, node = [], last.made_by
    while node is not None:
        nodes.append(type(node).__name__)
        leaf = getattr(node, "variable", None)
        node = node.next_functions[0][0] if len(node.next_functions) == 1 else None
    if nodes != ["ReluBackward0", "CloneBackward0", "AccumulateGrad"] or leaf is not hidden.output:
        return None
    return hidden.module if _is_affine(hidden) else None


def _of_single_pixels(module: nn.Module) -> bool:
    fits = isinstance(module, CONVOLUTIONS) and _unservable_kind(module) is None
    return fits and all(size == 1 for size in module.kernel_size)  # type: ignore[union-attr]


def _unservable(call: Call, trace: Trace) -> str | None:
    """Why the gradient embedding is not defined for this layer, or None."""
    module = call.module
    if reason := _unservable_kind(module):
        return reason
    n_calls = sum(other.module is module for other in trace.calls)
    if n_calls > 1:
        return f"the forward pass calls it {n_calls} times"
    twins = [other.name for other in trace.calls if other.module is not module and other.module.weight is module.weight]
    if twins or f"{call.name}.weight" in trace.loose:
        return f"its weight is used again, in {', '.join(twins) or 'a function'}, and has the gradient of both uses"
    if len(call.output) != trace.batch or call.features.ndim < 3:
        return (
            f"its input has shape {tuple(call.features.shape)} for {trace.batch} image, and images must stay apart "
            "along the first axis, with pixels or tokens along others"
        )
    return None if _is_affine(call) else "its output is not weight * input + bias"


@torch.no_grad()
def _is_affine(call: Call) -> bool:
    """Whether a layer's output is weight * input + bias."""
    weight: Any = call.module.weight
    expected = _functional(call.module, call.features.to(weight.dtype), call.output)
    error = (expected - call.output).abs().max()
    coarsest = max(torch.finfo(tensor.dtype).eps for tensor in (call.features, call.output, weight))
    return bool(error <= max(32 * coarsest, 1e-4) * expected.abs().max())


def _unservable_kind(module: nn.Module) -> str | None:
    """Why no layer of this kind and with these options can be used, or None."""
    if not isinstance(module, (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)):
        return f"it is a {type(module).__name__}, and only convolutions and linear layers are supported"
    if isinstance(module, nn.Linear):
        return None
    if module.groups != 1:
        return f"it has {module.groups} groups, and only one is supported"
    if isinstance(module, TRANSPOSED):
        return None
    for attribute in ("stride", "dilation"):
        if any(value != 1 for value in getattr(module, attribute)):
            return f"its {attribute} is {getattr(module, attribute)}, and only 1 is supported"
    if any(size % 2 == 0 for size in module.kernel_size):
        return f"its kernel is {module.kernel_size}, and only odd sizes are supported"
    half = tuple(size // 2 for size in module.kernel_size)
    fits = module.padding in (half, "same") or (module.padding == "valid" and not any(half))
    if not fits or (any(half) and module.padding_mode != "zeros"):
        return f"its padding is {module.padding} ({module.padding_mode}), and only zeros, {half}, are supported"
    return None


def _functional(module: nn.Module, features: Tensor, output: Tensor) -> Tensor:
    """What the layer's parameters make of its input, whatever its own forward does."""
    output_again: Tensor
    if isinstance(module, nn.Linear):
        return F.linear(features, module.weight, module.bias)
    if isinstance(module, CONVOLUTIONS):
        same = [size // 2 for size in module.kernel_size]
        output_again = getattr(F, f"conv{features.ndim - 2}d")(features, module.weight, module.bias, padding=same)
        return output_again
    kind: Any = next(kind for kind in TRANSPOSED if isinstance(module, kind))
    # The output's size is the module's choice, or its caller's.
    output_again = kind.forward(module, features, output_size=list(output.shape[2:]))
    return output_again


def _candidates(trace: Trace) -> str:
    if not trace.calls:
        return "No convolution or linear module was called: is the model scripted, quantised, or of functions alone?"
    rows = [
        f"\n  {call.name}: {type(call.module).__name__} {tuple(call.features.shape)} -> {tuple(call.output.shape)}"
        + (", leads straight to the logits" if call in trace.direct else "")
        for call in {**dict.fromkeys(trace.direct), **dict.fromkeys(trace.calls[-8:])}
    ]
    return f"Logits have shape {tuple(trace.logits.shape)}; the last layers called are:{''.join(rows)}"


def batch_norm_without_statistics(model: nn.Module) -> str | None:
    """A module that in eval mode too takes its statistics from the batch."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            return f"{type(module).__name__} {name!r}"
    return None


def without_nan(images: Tensor) -> Tensor:
    """For a look at the model: its layers are found on the first image of a pool, which may be a broken one."""
    return images.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
