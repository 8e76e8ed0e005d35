"""Read the graph of an ANN with torch.export.

torch.export freezes the training mode and the settings of dropout and batch norm. Here the graph is only used to find
the live modules, so that the spiking network follows their mode, Parameters, momentum and hooks.
"""

import itertools
import operator
import traceback
import warnings
from collections import Counter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from tandem_ext import SpikeTrain
from tandem_ext._torch import Convolution, OpOverload, arguments_of, pytree

from ..frozen.answers import numbered
from ..nn.hooks import evaluating
from ..nn.signals import describe, effective_counts, inputs_of
from . import kinds
from .graph import CannotConvert, Op, OpGraph, batch_of, bind, refuse, shape_of
from .inputs import GIVE, examples_for, follows_size

Example = Tensor | SpikeTrain


def exported(ann: nn.Module, example: tuple[Example, ...] | None = None, argument: str = "example") -> OpGraph:
    """Return the graph of an ANN in evaluation mode, for batches of any size.

    Args:
        example: a batch of each input, which fixes the size of inputs. None: find an input that the ANN accepts; if it
            accepts several sizes, the graph is for inputs of any size.
        argument: the name of the argument that gave the example, for errors.
    """
    for name, parameter in ann.named_parameters():
        if is_lazy(parameter):
            path = name.rpartition(".")[0]
            lazy = f"module {path!r}, {type(ann.get_submodule(path)).__name__}"
            raise CannotConvert(f"{lazy}: give it a batch first, after which it is a layer of torch's")
    needed = inputs_of(ann)
    if len(needed) > 1 and (example is None or len(example) != len(needed)):
        raise CannotConvert(f"its forward takes {', '.join(needed)}: give `example`, a tuple of a batch of each")
    with evaluating(ann):
        examples = (
            [(x,) for x in examples_for(ann)] if example is None else [tuple(_doubled(x, argument) for x in example)]
        )
        _check_answer(ann, _answer(ann, examples[0], argument))
        graph, *others = (_graph(ann, inputs) for inputs in examples)
        graph.of_one_size = example is not None and follows_size(ann, examples[0])
    if any(_numbers(graph) != _numbers(other) for other in others):
        raise CannotConvert(f"the operations of the ANN depend on the size of its input: {GIVE}")
    graph.sized = not others
    _say_unused(graph)
    return graph


def _doubled(example: Example, argument: str) -> Tensor:
    """Return the first sample twice, because torch.export treats a batch of one as a fixed size."""
    if not isinstance(example, Example):
        raise TypeError(f"{argument}: expected a batch, such as torch.rand(1, 3, 32, 32), got {describe(example)}")
    x = effective_counts(example)
    if x.dim() < 2 or not len(x):
        raise ValueError(f"{argument}: expected at least one sample, [B, *features], got {describe(x)}")
    return torch.cat([x[:1], x[:1]]).detach()


def _answer(ann: nn.Module, inputs: tuple[Tensor, ...], argument: str) -> Any:
    try:
        return ann(*inputs)
    except Exception as error:  # a user's forward may raise anything
        shapes = " and ".join(str(list(x.shape[1:])) for x in inputs)
        of = f"two samples of shape {shapes} (dimension 0 is the batch, of any size)"
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{argument}: the ANN does not accept {of}: {why}{_line_in(error)}") from error


def _check_answer(ann: nn.Module, answer: Any) -> None:
    name = type(ann).__name__
    instead = kinds.INSTEAD.get(name.lower())
    for value in pytree.tree_leaves(answer):
        if not isinstance(value, Tensor) or (value is not answer and instead):
            why = instead or "expected tensors, alone or in dicts, lists and tuples"
            raise CannotConvert(f"{name} returns {describe(value)}: {why}")


def _graph(ann: nn.Module, inputs: tuple[Tensor, ...]) -> OpGraph:
    free = tuple({0: torch.export.Dim.AUTO} for _ in inputs)
    try:
        return _Reader(ann, torch.export.export(ann, inputs, dynamic_shapes=free, strict=False)).graph
    except CannotConvert:
        raise
    except Exception as error:  # torch.export raises many classes of errors
        why = next((part for part in str(error).splitlines() if part.strip()), type(error).__name__)
        if type(error).__name__ == "GuardOnDataDependentSymNode":  # whose module takes long to import
            why = (
                f"its forward depends on values of the data (a branch or a loop), which a graph cannot{_line_in(error)}"
            )
        else:
            why = f"torch.export cannot trace the ANN ({type(error).__name__}: {why}){_line_in(error)}"
        raise CannotConvert(why) from error


def _line_in(error: Exception) -> str:
    """Return the line of the user's code that raised an error, if it is in none of torch's modules."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "/torch/" not in f.filename and f.filename != __file__]
    return f"; {own[-1].filename.rpartition('/')[2]}:{own[-1].lineno}: {own[-1].line}" if own else ""


def _numbers(graph: OpGraph) -> list[Any]:
    """Return everything in a graph except the shapes of values, to compare the graphs of two input sizes."""
    return [
        (op.kind, [value for value in pytree.tree_leaves(op.call) if not isinstance(value, Op)]) for op in graph.ops
    ]


def _say_unused(graph: OpGraph) -> None:
    """Warn about modules with synapses that the graph does not use, typically auxiliary heads."""
    read = {id(graph.attributes[op.target]) for op in graph.ops if op.kind == "attribute" and op.users}
    layers = (nn.Linear, Convolution)
    unused: list[str] = []
    for name, module in graph.ann.named_modules():
        idle = not any(id(parameter) in read for parameter in module.parameters())
        if idle and any(isinstance(m, layers) for m in module.modules()) and not name.startswith(tuple(unused)):
            unused.append(f"{name}.")
    if unused:
        names = ", ".join(name.rstrip(".") for name in unused)
        warnings.warn(f"convert: {names} takes no part in evaluation: the spiking network is without it", stacklevel=4)


class _Reader:
    """Reads the graph of an exported program; ``graph`` is the result."""

    def __init__(self, ann: nn.Module, program: torch.export.ExportedProgram) -> None:
        self.program, self.modules = program, dict(ann.named_modules(remove_duplicate=False))
        self.graph = OpGraph([], ann, {})
        self.ops: dict[fx.Node, Op] = {}
        calls: Counter[str] = Counter()  # the operations of each call of a module
        for node in program.graph.nodes:
            read = {"placeholder": self._placeholder, "call_function": self._call, "output": self._output}
            self.ops[node] = read.get(node.op, self._attribute)(node)
            calls[_module_stack(node)[-1][0]] += self.ops[node].kind != "size"
        self.graph.ops = list(self.ops.values())
        self.graph.link()
        for node, op in self.ops.items():
            op.alone = op.alone and calls[_module_stack(node)[-1][0]] == 1
        self._check_writes()
        self._unite_maxima()

    def _placeholder(self, node: fx.Node) -> Op:
        signature = self.program.graph_signature
        path = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}.get(node.name)
        if path is not None:
            return self._attribute(node, path, operator.attrgetter(path)(self.graph.ann))
        if node.name in signature.inputs_to_lifted_tensor_constants:
            name = signature.inputs_to_lifted_tensor_constants[node.name]
            return self._attribute(node, f"_{name.replace('.', '_')}", self.program.constants[name])
        value = node.meta["val"]
        shape, batch = shape_of(value), batch_of(value)
        if shape and batch is None:
            why = "its forward fixes the size of the batch, as len(x) does, but a spiking network needs any size"
            raise CannotConvert(f"{why}: use x.shape[0]{_where_fixed(value)}")
        return Op(node.name, "input", shape=shape, batch=batch)

    def _attribute(self, node: fx.Node, path: str = "", value: Any = None) -> Op:
        path = path or str(node.target)
        self.graph.attributes[path] = operator.attrgetter(path)(self.program.graph_module) if value is None else value
        return Op(node.name, "attribute", target=path)

    def _output(self, node: fx.Node) -> Op:
        answers: Any = fx.map_arg(node.args[0], self.ops.__getitem__)  # type: ignore[arg-type]
        spec = self.program.call_spec.out_spec
        assert spec is not None
        return Op("output", "output", call=((numbered(pytree.tree_unflatten([*answers], spec), iter(answers)),), {}))

    def _call(self, node: fx.Node) -> Op:
        args, kwargs = call = fx.map_arg((node.args, node.kwargs), self.ops.__getitem__)  # type: ignore[arg-type]
        target, value = node.target, node.meta.get("val")
        op = Op(node.name, "unknown", target, call=call, target=str(target), line=_line_of(node))
        op.shape, op.batch = shape_of(value), batch_of(value)
        path = _module_stack(node)[-1][1][0]
        if path in self.modules:
            op.path, op.module = path, self.modules[path]
        if target is operator.getitem:
            op.kind = "getitem"
        elif not isinstance(value, (Tensor, list, tuple)):
            op.kind = "size"
        elif isinstance(target, OpOverload) and target.namespace == "aten":
            name = target.overloadpacket.__name__
            op.kind = name if name.startswith("_") else name.removesuffix("_")
            op.args = bind(target, args, kwargs)
            self._select(op)
            if op.kind in kinds.DROPOUT and op.args["train"] and op.args["p"]:
                why = "it drops features in evaluation, too, and neurons do so in training alone"
                raise refuse(op, f"{why}: write training=self.training, or use nn.{kinds.DROPOUT[op.kind].__name__}")
            op.alone = _is_module_call(op)
        return op

    def _select(self, op: Op) -> None:
        """Write x[:, index] with one constant vector, of no sample, as index_select."""
        indices = op.args["indices"] if op.kind == "index" else []
        given = [(dim, index) for dim, index in enumerate(indices) if index is not None]
        if len(given) != 1 or given[0][0] == 0:
            return
        dim, index = given[0]
        constant = index
        while constant.kind in kinds.SAME:
            constant = constant.x
        values = self.graph.attributes.get(constant.target)
        if values is None or values.dtype not in (torch.int32, torch.int64) or values.dim() != 1 or (values < 0).any():
            return
        op.kind, op.function, op.call = "index_select", torch.ops.aten.index_select.default, ((op.x, dim, index), {})
        op.args = bind(op.function, *op.call)

    def _check_writes(self) -> None:
        """Refuse a write through a view if the memory is read later: in the graph that read has the old values."""
        place = {op: i for i, op in enumerate(self.graph.ops)}
        aliases: dict[Op, list[Op]] = {}  # the Ops that share an Op's memory
        for op in self.graph.ops:
            arguments = arguments_of(op.function) if op.args and isinstance(op.function, OpOverload) else ()
            shared = [(op.args[a.name], a.alias_info.is_write) for a in arguments if a.alias_info is not None]
            shared += [(value, False) for value in op.inputs if op.kind == "getitem"]
            for value, written in shared:
                if not isinstance(value, Op):
                    continue
                known = aliases.setdefault(value, [value])
                readers = (user for other in known for user in other.users if user.kind != "size")
                if written and any(place[user] > place[op] for user in readers):
                    raise refuse(op, "it writes into a view of what is read afterwards: compute a new tensor instead")
                known.append(op)
                aliases[op] = known

    def _unite_maxima(self) -> None:
        """Write max(dim) and adaptive pooling to one value as amax; other adaptive maxima have no indices."""
        values: dict[Op, Op] = {}  # item 0 of what they return -> amax
        for op in self.graph.ops:
            if op.kind == "max" and "dim" in op.args:
                dims, keepdim = [op.args["dim"]], op.args["keepdim"]
            elif op.kind.startswith("adaptive_max_pool"):
                dims, keepdim = [*range(-len(op.args["output_size"]), 0)], True
            else:
                continue
            for item in op.users:
                if item.call[0][1] and item.users:
                    raise refuse(item, "the indices of a maximum: spikes have none")
                op.shape = item.shape
                values[item] = op
            if set(op.args.get("output_size", [1])) != {1}:
                op.function = getattr(nn.functional, op.kind)
                continue
            op.kind, op.function, op.call = "amax", torch.ops.aten.amax.default, ((op.x, dims, keepdim), {})
            op.args = bind(op.function, *op.call)
        self.graph.replace(values)


def _module_stack(node: fx.Node) -> list[tuple[str, Any]]:
    """Return the calls of modules that a node is in, (name of the call, (path of the module, ...)), innermost last."""
    return [("", ("", None)), *(node.meta.get("nn_module_stack") or {}).items()]


def _is_module_call(op: Op) -> bool:
    """Return whether calling its module does an operation, if it is the only one of that call."""
    kind: Any = type(op.module)
    if (
        op.module is None
        or not str(kind.forward.__module__).startswith("torch.nn.modules.")
        or kind.__call__ is not nn.Module.__call__
    ):
        return False  # a forward of the user's may do more than its operations show
    if "output_padding" in op.args and tuple(op.args["output_padding"]) != op.module.output_padding:
        return False  # it depends on output_size, a further argument of the call
    return sum(source.batch is not None for source in op.inputs) == 1  # a call of the module has one argument


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


def _where_fixed(value: Tensor) -> str:
    """Return the line of the user's code at which torch.export gave a size of the batch its number, if it says so."""
    environment = getattr(getattr(value, "fake_mode", None), "shape_env", None)
    frames = [guard.sloc.framework_loc for guard in getattr(environment, "guards", ())]
    own = [frame for frame in frames if getattr(frame, "line", None) and "/torch/" not in frame.filename]
    return f"; {own[0].filename.rpartition('/')[2]}:{own[0].lineno}: {own[0].line}" if own else ""
