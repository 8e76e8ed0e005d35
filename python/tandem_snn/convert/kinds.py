"""Classify operators by their effect on spikes: neurons, rearrangements, linear and affine maps."""

from typing import Any

from torch import nn

from .graph import Op, refuse

SYNAPSES = ("linear", "convolution", *(f"conv{kind}{d}d" for kind in ("", "_transpose") for d in (1, 2, 3)))
SAME = ("alias", "contiguous", "clone", "detach", "lift_fresh_copy", "_to_copy", "to", "type_as")
DROPOUT = {
    "dropout": nn.Dropout, "feature_dropout": nn.Dropout2d,
    "alpha_dropout": nn.AlphaDropout, "feature_alpha_dropout": nn.FeatureAlphaDropout,
}  # fmt: skip
MAX_POOLS = ("max_pool1d", "max_pool2d", "max_pool3d", "amax", "adaptive_max_pool1d", "adaptive_max_pool2d")
AVERAGES = (*(f"{adaptive}avg_pool{d}d" for adaptive in ("", "adaptive_") for d in (1, 2, 3)), "mean")
# These move, repeat or drop single features, so their results on spikes are spikes.
REARRANGE = (
    *("flatten", "view", "reshape", "_unsafe_view", "unflatten", "squeeze", "unsqueeze"),
    *("expand", "expand_as", "view_as", "reshape_as"),
    *("permute", "transpose", "t", "movedim", "swapaxes", "mT", "flip", "roll", "rot90"),
    *("slice", "narrow", "select", "index_select", "split", "split_with_sizes", "chunk", "unbind", "tensor_split"),
    *("cat", "concat", "concatenate", "stack", "repeat", "tile", "repeat_interleave"),
    *("constant_pad_nd", "pad", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle"),
    *(f"{exact}upsample_nearest{exact}{d}d" for exact in ("", "_") for d in (1, 2, 3)),
    *(f"_upsample_nearest_exact{d}d" for d in (1, 2, 3)),
    *("reflection_pad1d", "reflection_pad2d", "reflection_pad3d"),
    *("replication_pad1d", "replication_pad2d", "replication_pad3d"),
)
LINEAR = (
    *AVERAGES,
    *("sum", "add", "sub", "rsub", "neg", "mul", "div", "matmul", "mm", "bmm", "einsum", "cumsum"),
    *("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d", "addmm", "baddbmm"),
    *("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "im2col", "col2im", "unfold", "fold"),
)
# Those of currents.
OF_CURRENTS = (*REARRANGE, *LINEAR, *SYNAPSES, *SAME, *DROPOUT, *MAX_POOLS, "getitem", "batch_norm")

# Operators that use only the shape or type of one argument, by its name.
SHAPE_OF = {
    **dict.fromkeys(("expand_as", "view_as", "reshape_as", "type_as"), "other"),
    **dict.fromkeys(("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full"), "self"),
}
# Operators that may move values along a dimension whose size they keep.
ALONG = ("flip", "roll", "rot90", "cumsum", "cat", "concat", "concatenate", "stack", "index_select")
MIXES = "it mixes the samples of the batch: keep the first dimension as it is"

_INSTEAD = {
    "put nn.ReLU there, and train on": "gelu silu swish leakyrelu elu selu celu mish prelu rrelu softplus hardswish "
    "hardtanh clamp tanh",
    "a gate or a squashing function; use nn.ReLU, or a network without it": "sigmoid hardsigmoid logsigmoid",
    "a softmax; build the network with tnn.SelfAttention": "softmax scaleddotproductattention multiheadattention",
    "a recurrent layer; use convolutions over time": "lstm gru rnntanh rnnrelu",
    "use max_pool3d": "adaptivemaxpool3d",
    "it normalises each sample by itself; use batch norm": "layernorm groupnorm instancenorm rmsnorm",
}
INSTEAD = {name: use for use, names in _INSTEAD.items() for name in names.split()}
EVERYTHING = "between the layers spikes pass ReLU, linear maps, pooling and additions, and nothing else"


def instead_of(op: Op) -> str | None:
    """Return what to use instead of a known operator that has no spiking counterpart."""
    names = [op.kind, type(op.module).__name__]
    return next((INSTEAD[n] for n in (name.replace("_", "").lower() for name in names) if n in INSTEAD), None)


def ceiling_of(op: Op) -> float | bool | None:
    """Return c for ReLU6 or hardtanh(0, c), None for a ReLU, False for any other operator."""
    if op.kind == "relu":
        return None
    if op.kind == "relu6":
        return 6.0
    low, high = {
        "hardtanh": ("min_val", "max_val"),
        "clamp": ("min", "max"),
        "clamp_min": ("min", "-"),
        "threshold": ("threshold", "-"),
    }.get(op.kind, ("", ""))
    if not low or not _number(op.args.get(low)) or op.args[low] != 0 or op.args.get("value", 0) != 0:
        return False
    ceiling = op.args.get(high)
    if ceiling is None or ceiling == float("inf"):
        return None
    return float(ceiling) if _number(ceiling) and ceiling > 0 else False


def is_relu(op: Op) -> bool:
    return ceiling_of(op) is not False


def is_max_pool(op: Op) -> bool:
    """Return whether it is a maximum over space, and not over channels, whose spikes differ in value."""
    if op.kind != "amax":
        return op.kind in MAX_POOLS
    return min((dim % op.x.dims for dim in op.args["dim"]), default=0) > 1


def mixes_samples(op: Op, signals: list[Op]) -> bool:
    """Return whether a sample of its value may depend on other samples of the batch, given these inputs."""
    if any(value.batch != op.batch for value in signals):
        return True
    if op.kind in ("mm", "matmul", "addmm") and op.dims == 2:
        return op.args.get("mat2", op.args.get("other")) in signals  # the rows of a right factor are samples
    dims = op.args.get("dims", op.args.get("dim"))
    dims = dims if isinstance(dims, (list, tuple)) else [dims]
    return op.kind in ALONG and (not dims or any(dim % op.dims == 0 for dim in dims))


def check_linear(op: Op, signals: list[Op]) -> None:
    """Raise an error unless an operator is linear in these inputs, but for a constant."""
    if op.kind in SYNAPSES:
        for name in ("weight", "bias"):
            if op.args.get(name) in signals:
                raise refuse(op, f"its {name} depends on the input: use Parameters")
    elif op.kind in ("mul", "matmul", "mm", "bmm", "einsum", "addmm", "baddbmm") and len(signals) > 1:
        why = "a product of two activations, such as a gate, has no spiking counterpart"
        raise refuse(op, f"{why}: leave it out, or build attention of tnn.SelfAttention and train it")
    elif op.kind == "div" and (op.args.get("other") in signals or op.args.get("rounding_mode")):
        raise refuse(op, "a quotient has no spiking counterpart: divide by numbers or Parameters")


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
