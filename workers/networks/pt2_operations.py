"""The operations of an exported graph: those that are known, and what is said of each.

The known ones compute. None reads a file, writes into a given tensor or runs code.
"""

import operator
import re
from collections.abc import Callable
from typing import Any

import torch

from workers.networks.pt2_files import DTYPES

#: Names that may be part of the code that torch.fx writes for a graph.
SAFE = re.compile(r"\w+(\.\w+)*", re.ASCII)

_NAMES = """
abs adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool2d add addmm alias amax amin arange argmax avg_pool1d
avg_pool2d baddbmm batch_norm bmm broadcast_to cat ceil celu chunk clamp clamp_max clamp_min clone concat
constant_pad_nd contiguous conv1d conv2d conv_transpose2d convolution cos cumsum detach div dropout dropout2d einsum elu
embedding eq erf exp expand expand_as eye feature_dropout flatten flip floor floor_divide full full_like gather ge gelu
glu grid_sampler group_norm gt hardsigmoid hardswish hardtanh index index_select instance_norm layer_norm le leaky_relu
lerp lift_fresh_copy linalg_vector_norm linear linspace log log_sigmoid log_softmax logical_and logical_not logical_or
logsumexp lt masked_fill matmul max max_pool2d max_pool2d_with_indices maximum mean min minimum mish mm movedim mul
narrow native_layer_norm ne neg ones ones_like pad permute pixel_shuffle pixel_unshuffle pow prelu reciprocal
reflection_pad2d relu relu6 remainder repeat repeat_interleave replication_pad2d reshape rms_norm roll rsqrt rsub
scaled_dot_product_attention select selu sigmoid sign silu sin slice softmax softplus split split_with_sizes sqrt square
squeeze stack std sub sum t tan tanh to to_copy transpose tril triu true_divide type_as unbind unflatten unfold
unsafe_view unsqueeze upsample_bicubic2d upsample_bicubic2d_aa upsample_bilinear2d upsample_bilinear2d_aa
upsample_nearest2d var var_mean view view_as where zeros
zeros_like
"""
#: The known operators of ``torch.ops.aten``, without the underscores before and after a name.
OPERATORS = frozenset(_NAMES.split())

#: Operators whose functions the rest of the program knows by name.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "add.Tensor": operator.add, "sub.Tensor": operator.sub, "mul.Tensor": operator.mul, "div.Tensor": operator.truediv,
    "cat.default": torch.cat, "concat.default": torch.cat, "flatten.using_ints": torch.flatten,
    "reshape.default": torch.reshape, "view.default": torch.reshape, "_unsafe_view.default": torch.reshape,
    "permute.default": torch.permute, "transpose.int": torch.transpose, "mean.dim": torch.mean,
    "chunk.default": torch.chunk,
}  # fmt: skip

#: Checks of a traced program, which compute nothing.
CHECKS = ("_assert", "sym_constrain_range", "_guards")

#: Arithmetic on the sizes of pictures.
SIZES = {f"_operator.{name}": getattr(operator, name) for name in ("add", "sub", "mul", "floordiv", "mod", "neg")}

#: Types of numbers and texts in arguments.
_PLAIN = (int, bool, float, str)

#: Arguments that say where and how a tensor lies in memory.
PLACES = {"device", "layout", "pin_memory", "memory_format"}


def names_in(output: dict[str, Any]) -> list[str]:
    """The names in one output of an operation."""
    ((kind, value),) = output.items()
    if kind == "as_tensors":
        return [str(one["name"]) for one in value]
    return [str(value["as_name"])] if kind == "as_sym_int" else [str(value["name"])] if kind == "as_tensor" else []


def module_path(entry: dict[str, Any]) -> str:
    """Path of the module whose code calls the operation, or ""."""
    stack = str(entry["metadata"].get("nn_module_stack", ""))
    parts = stack.rpartition(";")[2].split(",")
    path = parts[1] if len(parts) > 2 else ""
    return path if SAFE.fullmatch(path) else ""


def value_of(argument: dict[str, Any], named: Callable[[str], Any]) -> Any:
    """An argument's value, with ``named`` for what is named; None for places in memory. Raises ValueError."""
    ((kind, value),) = argument.items()
    if kind == "as_tensor":
        return named(value["name"])
    if kind in {"as_tensors", "as_optional_tensors"}:
        return [value_of(one if "name" not in one else {"as_tensor": one}, named) for one in value]
    if kind in {"as_sym_int", "as_sym_bool", "as_sym_float"}:
        return named(value["as_name"]) if "as_name" in value else int(value["as_int"])
    if kind == "as_sym_ints":
        return [value_of({"as_sym_int": one}, named) for one in value]
    if kind in {"as_int", "as_bool", "as_string"} and type(value) in _PLAIN:
        return value
    if kind == "as_float":
        return float(value)
    if kind in {"as_ints", "as_bools", "as_floats"} and all(type(one) in _PLAIN for one in value):
        return list(value)
    if kind == "as_scalar_type":
        dtype = DTYPES[value]
        return torch.float32 if dtype.is_floating_point else dtype  # networks compute in float32
    if kind in {"as_none", "as_device", "as_layout", "as_memory_format"}:
        return None
    raise ValueError(f"an argument is of the kind {kind[:40]!r}")
