"""Read the graph of an ANN with torch.export.

torch.export freezes the training mode and the settings of dropout and batch norm. Here the graph is only used to find
the live modules, so that the spiking network follows their mode, Parameters, momentum and hooks.
"""

from __future__ import annotations

import itertools
import operator
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from tandem_ext import SpikeTrain

from ..nn.hooks import evaluating
from ..nn.signals import describe, effective_counts, inputs_of
from .graph import CannotConvert, Graph, Op, batch_of, bind, does_only, refuse, shape_of

Example = Tensor | SpikeTrain
Call = Callable[[Tensor], Any]
GIVE = "give `example`, a batch of its inputs: convert(ann, T, example=images)"
LARGEST = (1, 1 << 15, 512, 64)  # the largest side of an input to try, by number of spatial dimensions


def exported(ann: nn.Module, example: Example | None = None, stateful: bool = False) -> Graph:
    """Return the graph of an ANN in evaluation mode, for batches of any size.

    Args:
        example: a batch, which fixes the size of inputs. None: find an input that the ANN accepts; if it accepts
            several sizes, the graph is for inputs of any size.
        stateful: whether further inputs and outputs of the ANN are states, which are ignored.
    """
    for name, parameter in ann.named_parameters():
        if is_lazy(parameter):
            path = name.rpartition(".")[0]
            lazy = f"module {path!r}, {type(ann.get_submodule(path)).__name__}"
            raise CannotConvert(f"{lazy}: give it a batch first, after which it is a layer of torch's")
    needed = inputs_of(ann)
    if len(needed) > 1 and not stateful:
        raise CannotConvert(f"its forward has a second input, {needed[1]!r}: a spiking network has one")
    state = [torch.zeros(())] * (len(needed) - 1)
    with evaluating(ann):
        examples = _examples_for(ann, lambda x: ann(x, *state)) if example is None else [_doubled(example)]
        answer = _answer(ann, (examples[0], *state))
        if not isinstance(answer, Tensor) and not stateful:
            several = isinstance(answer, (tuple, list, dict))
            what = f"{len(answer)} values, {type(answer).__name__}" if several else describe(answer)
            raise CannotConvert(f"the network returns {what}: a spiking network has one answer, a tensor")
        graph, *others = (_graph(ann, (x, *state)) for x in examples)
    if any(_numbers(graph) != _numbers(other) for other in others):
        raise CannotConvert(f"the operations of the ANN depend on the size of its input: {GIVE}")
    graph.sized = not others
    _say_unused(graph)
    return graph


def _doubled(example: Example) -> Tensor:
    """Return the first sample twice, because torch.export treats a batch of one as a fixed size."""
    if not isinstance(example, Example):
        raise TypeError(f"example: expected a batch of what the network takes, got {describe(example)}")
    x = effective_counts(example)
    if x.dim() < 2 or not len(x):
        raise ValueError(f"example: expected at least one sample, [B, *features], got {describe(x)}")
    return torch.cat([x[:1], x[:1]]).detach()


def _answer(ann: nn.Module, inputs: tuple[Tensor, ...]) -> Any:
    try:
        return ann(*inputs)
    except Exception as error:  # a user's forward may raise anything
        raise ValueError(f"example: the ANN does not accept it: {str(error).splitlines()[0]}") from error


def _graph(ann: nn.Module, inputs: tuple[Tensor, ...]) -> Graph:
    free = ({0: torch.export.Dim.AUTO}, *({} for _ in inputs[1:]))
    try:
        return _Reader(ann, torch.export.export(ann, inputs, dynamic_shapes=free, strict=False)).graph
    except CannotConvert:
        raise
    except Exception as error:  # torch.export raises many classes of errors
        text = str(error)
        why = next((part for part in text.splitlines() if part.strip()), type(error).__name__)
        if "data-dependent" in text or "GuardOnDataDependent" in type(error).__name__:
            why = f"its forward depends on values of the data (a branch or a loop), which a graph cannot: {why}"
        else:
            why = f"torch.export cannot trace the ANN ({type(error).__name__}: {why})"
        raise CannotConvert(why) from error


def _numbers(graph: Graph) -> list[Any]:
    """Return everything in a graph except the shapes of values, to compare the graphs of two input sizes."""
    return [
        (op.kind, [value for value in pytree.tree_leaves(op.call) if not isinstance(value, Op)]) for op in graph.ops
    ]


def _say_unused(graph: Graph) -> None:
    """Warn about modules with synapses that the graph does not use, typically auxiliary heads."""
    read = {id(graph.attributes[op.target]) for op in graph.ops if op.kind == "attribute" and op.users}
    layers = (nn.Linear, _ConvNd)
    unused: list[str] = []
    for name, module in graph.ann.named_modules():
        idle = not any(id(parameter) in read for parameter in module.parameters())
        if idle and any(isinstance(m, layers) for m in module.modules()) and not name.startswith(tuple(unused)):
            unused.append(f"{name}.")
    if unused:
        names = ", ".join(name.rstrip(".") for name in unused)
        warnings.warn(f"convert: {names} takes no part in evaluation: the spiking network is without it", stacklevel=4)


class _Reader:
    def __init__(self, ann: nn.Module, program: torch.export.ExportedProgram) -> None:
        self.ann = ann
        self.modules = dict(ann.named_modules(remove_duplicate=False))
        signature = program.graph_signature
        self.paths = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        self.constants = signature.inputs_to_lifted_tensor_constants
        self.attributes: dict[str, Any] = {}
        self.ops: dict[fx.Node, Op] = {}
        for node in program.graph.nodes:
            if node.op == "placeholder":
                self.ops[node] = self._placeholder(node, program)
            elif node.op == "output":
                answers: Any = node.args[0]
                self.ops[node] = Op("output", "output", call=(tuple(self.ops[a] for a in answers), {}))
            elif node.op == "call_function":
                self.ops[node] = self._call(node)
            else:
                self.ops[node] = Op(node.name, "attribute", target=str(node.target))
                self.attributes[str(node.target)] = operator.attrgetter(str(node.target))(program.graph_module)
        self.graph = Graph(list(self.ops.values()), ann, self.attributes).link()
        for op in self.graph.ops:
            op.alone = op.alone and sum(o.path == op.path and o.module is op.module for o in op.users) == 0
        self._check_writes()
        self._unite_maxima()

    def _placeholder(self, node: fx.Node, program: Any) -> Op:
        if node.name in self.paths:
            path = self.paths[node.name]
            self.attributes[path] = operator.attrgetter(path)(self.ann)
            return Op(node.name, "attribute", target=path)
        if node.name in self.constants:
            path = f"_{self.constants[node.name].replace('.', '_')}"
            self.attributes[path] = program.constants[self.constants[node.name]]
            return Op(node.name, "attribute", target=path)
        value = node.meta["val"]
        shape, batch = shape_of(value), batch_of(value)
        if shape and batch is None:
            raise CannotConvert(
                "its forward fixes the size of the batch, as len(x) does, but a spiking network needs any size: use "
                "x.shape[0]"
            )
        return Op(node.name, "input", shape=shape, batch=batch)

    def _call(self, node: fx.Node) -> Op:
        args, kwargs = fx.map_arg((node.args, node.kwargs), self.ops.__getitem__)  # type: ignore[arg-type]
        target: Any = node.target
        value = node.meta.get("val")
        op = Op(node.name, "unknown", target, call=(args, kwargs), target=str(target))
        op.shape, op.batch = shape_of(value), batch_of(value)
        op.line = _line_of(node)
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        if stack and stack[-1][0] in self.modules:
            op.path = stack[-1][0]
            op.module = self.modules[op.path]
        if target is operator.getitem:
            op.kind = "getitem"
        elif isinstance(value, (int, float, bool, torch.SymInt, torch.SymFloat, torch.SymBool)) or value is None:
            op.kind = "size"
        if isinstance(target, torch._ops.OpOverload) and target.namespace == "aten" and op.kind != "size":
            name = target.overloadpacket.__name__
            op.kind = name if name.startswith("_") else name.removesuffix("_")
            op.args = bind(target, args, kwargs)
            op.alone = does_only(op.module, op.kind)
        return op

    def _check_writes(self) -> None:
        """Refuse a write through a view if the memory is read later: in the graph that read has the old values."""
        place = {op: i for i, op in enumerate(self.graph.ops)}
        same: dict[Op, list[Op]] = {}  # the Ops that share an Op's memory
        for op in self.graph.ops:
            schema = getattr(op.function, "_schema", None)
            arguments = schema.arguments if schema is not None and op.args else ()
            shared = [(op.args[a.name], a.alias_info.is_write) for a in arguments if a.alias_info is not None]
            shared += [(given, False) for given in op.inputs if op.kind == "getitem"]
            for given, written in shared:
                if not isinstance(given, Op):
                    continue
                known = same.setdefault(given, [given])
                readers = (user for other in known for user in other.users if user.kind != "size")
                if written and any(place[user] > place[op] for user in readers):
                    raise refuse(op, "it writes into a view of what is read afterwards: compute a new tensor instead")
                known.append(op)
                same[op] = known

    def _unite_maxima(self) -> None:
        """Write max(dim) and adaptive maximum pooling to one value as amax."""
        values: dict[Op, Op] = {}  # item 0 of what they return -> amax
        for op in self.graph.ops:
            if op.kind == "max" and "dim" in op.args:
                dims, keepdim = [op.args["dim"]], op.args["keepdim"]
            elif op.kind.startswith("adaptive_max_pool") and set(op.args["output_size"]) == {1}:
                dims, keepdim = [*range(-len(op.args["output_size"]), 0)], True
            else:
                continue
            for item in op.users:
                if item.call[0][1] and item.users:
                    raise refuse(item, "the indices of a maximum: spikes have none")
                op.shape = item.shape
                values[item] = op
            op.kind, op.function, op.call = "amax", torch.ops.aten.amax.default, ((op.x, dims, keepdim), {})
            op.args = bind(op.function, *op.call)
        self.graph.replace(values)


def _line_of(node: fx.Node) -> str:
    """Return the line of the user's code that made a node, rather than a line of torch."""
    lines = str(node.meta.get("stack_trace") or "").splitlines()
    frames = [(a.strip(), b.strip()) for a, b in itertools.pairwise(lines) if a.lstrip().startswith('File "')]
    own = [frame for frame in frames if "/torch/" not in frame[0]]
    if not own:
        return ""
    file, code = own[-1]
    name, _, rest = file.removeprefix('File "').partition('", line ')
    return f"{name.rpartition('/')[2]}:{rest.partition(',')[0]}: {code}"


# --- without an example: find a batch that the ANN accepts, from its layers -------------------------------------------


class _Input(NamedTuple):
    """The input of a layer: its number of channels and of spatial dimensions, dtype and device."""

    channels: int
    space: int
    dtype: torch.dtype
    device: torch.device

    def batch(self, side: int) -> Tensor:
        return torch.zeros(2, self.channels, *[side] * self.space, dtype=self.dtype, device=self.device)


def _examples_for(ann: nn.Module, call: Call) -> list[Tensor]:
    """Return a batch that the ANN accepts, and if possible one of another size. Images are square."""
    errors = []
    for given in dict.fromkeys(_inputs(ann)):
        side, error = _side(call, given)
        if error is None:
            others = (2 * side, side + 1, side - 1) if given.space else ()
            sides = [side, *(other for other in others if not _error(call, given.batch(other)))]
            return [given.batch(s) for s in sides[:2]]
        errors.append(error)
    if not errors:
        raise CannotConvert("it has no nn.Linear and no convolution, so nothing would spike")
    line = next(iter(str(errors[0]).splitlines()), type(errors[0]).__name__)
    raise CannotConvert(f"found no input that the ANN accepts ({line}): {GIVE}") from errors[0]


def _inputs(ann: nn.Module) -> Iterator[_Input]:
    """Yield the inputs of layers, and of other Parameters that look like weights, in order of ``ann.modules()``."""
    for module in ann.modules():
        own = [p for p in module.parameters(recurse=isinstance(module, (nn.Linear, _ConvNd))) if p.dim() > 1]
        if isinstance(module, nn.Linear):
            yield _Input(module.in_features, 0, own[0].dtype, own[0].device)
        elif isinstance(module, _ConvNd):
            yield _Input(module.in_channels, len(module.kernel_size), own[0].dtype, own[0].device)
        else:
            yield from (_Input(p.shape[1], p.dim() - 2, p.dtype, p.device) for p in own if p.dim() <= 5)


def _side(call: Call, given: _Input) -> tuple[int, Exception | None]:
    """Return (side, None) if the ANN accepts inputs with that side, else (side, the first error)."""
    low, high, side = 0, 0, 28  # 28 first, because some networks for MNIST accept no other size
    first = error = _error(call, given.batch(side))
    while error is not None:
        low, high = (low, side) if isinstance(error, _TooLarge) else (side, high)
        side = (low + high) // 2 if high else 2 * low
        if side == low or side > LARGEST[given.space]:
            return side, first
        error = _error(call, given.batch(side))
    return side, None


def _error(call: Call, x: Tensor) -> Exception | None:
    try:
        with _Sizes():
            call(x)
    except Exception as error:  # a user's forward may raise anything
        return error
    return None


class _TooLarge(Exception):
    pass


class _Sizes(TorchFunctionMode):
    """Raises _TooLarge if a linear layer gets more features than its weight takes."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and args[0].shape[-1] > args[1].shape[-1]:
            raise _TooLarge(f"{args[0].shape[-1]} features, where a weight of shape {list(args[1].shape)} follows")
        return func(*args, **(kwargs or {}))
