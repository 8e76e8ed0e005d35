"""How a network's layers are connected, as data: read from the network by torch.fx, and run without generated code."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from ..measure.hooks import given
from .trace import LAYERS

INPUT = -1  # as a value: what the network was given


@dataclass(frozen=True)
class Use:
    """One call of a layer.

    Attributes:
        layer: its name in the network.
        x, residual: what it takes: numbers of earlier uses, or INPUT; no residual is None.
        fire: False: the currents are wanted, not the spikes.
    """

    layer: str
    x: int
    residual: int | None = None
    fire: bool = True


class Wired(nn.Module):
    """A network made of layers and their uses in order; the last use gives the answer.

    Args:
        layers: by name, where dots stand for modules in modules, as in ``named_modules``.
        uses: each reads results of uses before it.

    >>> net = Wired({"a": nn.Flatten(), "b.c": nn.Linear(4, 2)}, [Use("a", INPUT), Use("b.c", 0)])
    >>> net(torch.rand(3, 2, 2)).shape, [name for name, _ in net.named_parameters()]
    (torch.Size([3, 2]), ['b.c.weight', 'b.c.bias'])
    """

    def __init__(self, layers: Mapping[str, nn.Module], uses: Sequence[Use]) -> None:
        super().__init__()
        for name, layer in layers.items():
            *outer, last = name.split(".")
            holder: nn.Module = self
            for part in outer:
                if part not in holder._modules:
                    holder.add_module(part, nn.Module())
                holder = holder.get_submodule(part)
            holder.add_module(last, layer)
        self._uses = tuple(uses)

    def forward(self, x: Any) -> Any:
        values: list[Any] = []
        for use in self._uses:
            layer = self.get_submodule(use.layer)
            keywords: dict[str, Any] = {} if use.fire else {"fire": False}
            if use.residual is not None:
                keywords["residual"] = x if use.residual == INPUT else values[use.residual]
            values.append(layer(x if use.x == INPUT else values[use.x], **keywords))
        return values[-1]


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, LAYERS) or super().is_leaf_module(module, name)


def wiring(net: nn.Module) -> list[Use]:
    """The uses of the layers of ``net``.

    Raises:
        ValueError: something other than calls of modules happens between the input and the answer.
    """
    if isinstance(net, Wired):
        return list(net._uses)
    try:
        graph = _Tracer().trace(net)
    except Exception as error:  # whatever a forward raises at a value that is not there yet
        raise ValueError(f"net: torch.fx cannot follow it ({type(error).__name__}: {error})") from error
    numbers: dict[Any, int] = {}
    uses: list[Use] = []
    for node in graph.nodes:
        if node.op == "placeholder":
            if numbers:
                raise ValueError(f"net: it has a second input, {node.name!r}")
            numbers[node] = INPUT
        elif node.op == "output":
            if numbers.get(node.args[0]) != len(uses) - 1 or not uses:
                raise ValueError("net: it does not end in the answer of its last layer")
        elif node.op == "call_module" and len(node.args) <= 2 and set(node.kwargs) <= {"x", "residual", "fire"}:
            x, further = given(node.args, node.kwargs)
            residual, fire = further.get("residual"), further.get("fire", True)
            numbers[node] = len(uses)
            uses.append(Use(str(node.target), numbers[x], numbers.get(residual), bool(fire)))
        else:
            what = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.target)
            raise ValueError(f"net: {node.name!r} ({node.op} {what}) is not a layer of tandem_snn.nn")
    return uses
