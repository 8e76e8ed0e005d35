"""to_c: write a frozen network as C99 that computes with integers from its counts to the sums of its readout."""

from __future__ import annotations

import math
import re
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..container import write_atomically
from ..frozen import FrozenNetwork
from ..listing import NamedStage
from ..nn.currents import Currents
from .graph import IntegerGraph, Node, in_order, space
from .steps import following

_BYTES = {"int8_t": 1, "uint8_t": 1, "int32_t": 4, "float": 4}
_ARENAS = {"uint8_t": "counts", "float": "currents", "int32_t": "totals"}  # where values of each type are
_HEADER = """\
/* A spiking network in integers, written by tandem_snn.
   RAM: {ram} bytes, constants: {flash} bytes. {floats} */
#ifndef TANDEM_NET_H
#define TANDEM_NET_H
#include <stdint.h>

#define NET_INPUTS {inputs} /* {shape}, counts from 0 to {levels} */
#define NET_SUMS {sums} /* {sums_shape} */

/* Computes the sums of the readout at the counts x. Returns 0, or 1 if a count is too large. For one thread. */
int net_run(const uint8_t *x, int32_t *sums);
/* Computes the logits, with two operations of floats for each. */
void net_logits(const int32_t *sums, float *logits);
/* Returns 0 if the sums at an input are those that Python found. */
int net_test(void);
{step}#endif
"""
_ROUNDED = """\
static inline float {name}(float a, float b) {{
  volatile float y = a {sign} b; /* rounded to float: no wider register, no fused operation */
  return y;
}}
"""


class Footprint(NamedTuple):
    """The bytes that a program in C takes: ``ram`` for the counts of its layers, ``flash`` for its constants."""

    ram: int
    flash: int


def to_c(frozen: FrozenNetwork, folder: str | PathLike[str]) -> Footprint:
    """Write a frozen network as ``net.h`` and ``net.c``: freestanding C99, the same counts on every machine.

    ``int net_run(const uint8_t *x, int32_t *sums)`` takes the counts of the input in the order of the tensor's memory,
    [C, H, W], and gives the exact sums of the readout; ``net_logits(sums, logits)`` makes logits of them, and
    ``net_test()`` returns 0 if the compiled program is right. Compiled with ``-DNET_STEP`` there is also ``net_step``:
    one step of neurons that follow their input. A neuron is a table of T thresholds of its channel.
    Neurons that add two products, and those whose table would be large, compute in float32 with the rounding of the
    rule; the header names them.

    Args:
        frozen: a frozen network whose input is counts or pixels, with timing "window" and weights of 2 to 8 bits. It
            must have run once, so that its shape and T are known.
        folder: the folder for the two files; it is made if it does not exist.

    Returns:
        The bytes of RAM and of constants.

    Raises:
        TypeError: frozen is not a frozen network.
        ValueError: its shape or T is not known.
        CannotLower: a layer has no integer form: step timing, float weights, real numbers as input, a potential that
            may overflow. It is a ValueError that names the layer.

    >>> layer = tnn.Linear(4, 3, timing="window")
    >>> frozen = tandem_snn.freeze(nn.Sequential(layer, tnn.Readout(3, 2)), weight_bits=4, T=8)
    >>> logits = frozen(te.SpikeTrain.from_counts(torch.ones(1, 4), T=8))
    >>> tandem_snn.to_c(frozen, "net")
    Footprint(ram=15, flash=142)
    """
    program = Program(IntegerGraph.of(frozen))
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "net.h", program.header().encode())
    write_atomically(folder / "net.c", program.source().encode())
    return Footprint(program.ram, program.flash)


class Program:
    """Writes a function for each node. Values are channels-last in memory."""

    def __init__(self, graph: IntegerGraph) -> None:
        self.graph, self.network = graph, graph.network
        self.parts: list[str] = []  # constants and functions
        self.calls: list[str] = []
        self.flash = 0
        self.floats: list[str] = []  # layers that compute in floats
        self.levels = self.network.levels["input"]
        self.most_outputs = 0
        self.tables: dict[str, str] = {}  # where the thresholds of a neuron begin
        self.weights: dict[str, str] = {}
        self.runs: dict[str, str] = {}  # the functions
        stages = self.network.stages
        self.last = next(stage for stage in reversed(stages) if stage.instruction.kind != "flatten")
        self.aliases = {stage.name: stage.x for stage in stages if self._is_alias(stage)}
        self.pointers, self.sizes = self._plan()
        if self.pointers["input"] != "x":
            self._take_input()
        for stage in stages:
            self._write(graph.nodes[stage.name])
        self._logits(graph.nodes[self.last.name])
        self._test()
        self.step = following(self)
        self.ram = sum(size * _BYTES[ctype] for ctype, size in self.sizes.items()) + 4 * self.most_outputs

    # --- memory -------------------------------------------------------------------------------------------------------

    def _is_alias(self, stage: NamedStage) -> bool:
        """Whether a Flatten leaves features in the order of their image, because only weights read them."""
        if stage.instruction.kind != "flatten":
            return False
        readers = [reader for reader in self.network.stages if stage.name in (reader.x, reader.residual)]
        by_weights = all(reader.layer.weight is not None and reader.residual != stage.name for reader in readers)
        return by_weights or in_order(stage.in_shape)

    def root(self, name: str) -> str:
        while name in self.aliases:
            name = self.aliases[name]
        return name

    def title(self, name: str) -> str:
        """Return a name that can stand in a comment."""
        return re.sub(r"[^0-9A-Za-z_]", "_", name)

    def type(self, name: str) -> str:
        if name in self.network.levels:
            return "uint8_t"
        return "float" if self.graph.nodes[name].stage.signal is Currents else "int32_t"

    def _plan(self) -> tuple[dict[str, str], dict[str, int]]:
        """Give each value a place that others have when it is not needed, the largest first; return their pointers."""
        lives: dict[str, list[int]] = {"input": [-1, -1]}
        sizes = {"input": math.prod(self.network.shape)}
        for number, stage in enumerate(self.network.stages):
            for name in filter(None, (stage.x, stage.residual)):
                lives[self.root(name)][1] = number
            if stage.name not in self.aliases:
                lives[stage.name], sizes[stage.name] = [number, number], math.prod(stage.shape)
        pointers = {self.last.name: "sums"}
        if in_order(self.network.shape):
            pointers["input"] = "x"
        taken: dict[str, tuple[int, int]] = {}
        for name in sorted(lives.keys() - pointers.keys(), key=lambda name: (-sizes[name], name)):
            (born, dies), at = lives[name], 0
            beside = [other for other in taken if lives[other][0] <= dies and born <= lives[other][1]]
            for start, end in sorted(taken[other] for other in beside if self.type(other) == self.type(name)):
                if at + sizes[name] <= start:
                    break
                at = max(at, end)
            taken[name] = at, at + sizes[name]
            pointers[name] = f"{_ARENAS[self.type(name)]} + {at}"
        ends = [(self.type(name), end) for name, (_, end) in taken.items()]
        return pointers, {ctype: max((end for of, end in ends if of == ctype), default=0) for ctype in _ARENAS}

    def _shape(self, name: str | None) -> tuple[int, ...]:
        return self.network.shape if name in (None, "input") else self.graph.nodes[str(name)].stage.shape

    # --- text ---------------------------------------------------------------------------------------------------------

    def _constant(self, ctype: str, name: str, values: Tensor) -> str:
        """Add an array for the function that is written next; return its name."""
        name = f"{name}{len(self.calls)}"
        numbers = [f"{float(value).hex()}f" if ctype == "float" else str(value) for value in values.flatten().tolist()]
        lines = [", ".join(numbers[start : start + 20]) for start in range(0, len(numbers), 20)]
        self.parts.append(f"static const {ctype} {name}[] = {{\n" + ",\n".join(lines) + "};")
        self.flash += len(numbers) * _BYTES[ctype]
        return name

    def _function(self, name: str, body: str, x: str, residual: str | None = None) -> None:
        """Add a function that computes a value from one or two others, and its call."""
        number = len(self.calls)
        self.runs[name] = f"run{number}"
        reads = [(x, "x")] if residual is None else [(x, "x"), (residual, "r")]
        arguments = ", ".join(f"const {self.type(read)} *{argument}" for read, argument in reads)
        self.parts.append(
            f"/* {self.title(name)} */\nstatic void run{number}({arguments}, {self.type(name)} *y) {{\n{body}}}"
        )
        pointers = [self.pointers[self.root(read)] for read, _ in reads]
        self.calls.append(f"run{number}({', '.join([*pointers, self.pointers[name]])});")

    def _write(self, node: Node) -> None:
        stage, kind, shape = node.stage, node.stage.instruction.kind, node.stage.shape
        if stage.name in self.aliases or (kind == "flatten" and stage.signal is Tensor):
            return
        if kind == "flatten":
            self._move(stage, torch.arange(shape[0]).view(-1, stage.in_shape[0]).t().flatten(), 1)
        elif kind == "gather":
            i, index = stage.instruction, stage.layer.index
            pixels = math.prod(shape[1:]) if i.by_channel else 1
            self._move(stage, torch.arange(i.channels) if index is None else index, pixels)
        elif kind == "max_pool":
            self._maximum(stage)
        elif node.weight is None:
            body = f"""\
  for (int32_t p = 0; p < {math.prod(shape[1:])}; p++)
    for (int32_t o = 0; o < {shape[0]}; o++) {{
{self._potential(node, f"(float)x[p * {shape[0]} + o]")}
    }}
"""
            self._function(stage.name, body, stage.x, stage.residual)
        else:
            self._product(node)

    # --- functions ----------------------------------------------------------------------------------------------------

    def _take_input(self) -> None:
        """Make the input channels-last."""
        channels, size = self.network.shape[0], math.prod(self.network.shape)
        count = f"x[k % {channels} * {size // channels} + k / {channels}]"
        self.parts.append(f"""\
static void take(const uint8_t *x, uint8_t *y) {{
  for (int32_t k = 0; k < {size}; k++) y[k] = {count};
}}""")
        self.calls.append(f"take(x, {self.pointers['input']});")

    def _move(self, stage: NamedStage, index: Tensor, pixels: int) -> None:
        """Move values of each pixel: an index is a place among those of x and then of the residual; -1 is 0."""
        inputs, others = (math.prod(shape) // pixels for shape in (stage.in_shape, self._shape(stage.residual)))
        value = f"x[p * {inputs} + i]"
        if stage.residual is not None:
            value = f"i < {inputs} ? {value} : r[p * {others} + i - {inputs}]"
        body = f"""\
  for (int32_t p = 0; p < {pixels}; p++)
    for (int32_t k = 0; k < {index.numel()}; k++) {{
      const int32_t i = {self._constant("int32_t", "i", index)}[k];
      y[p * {index.numel()} + k] = i < 0 ? 0 : {value};
    }}
"""
        self._function(stage.name, body, stage.x, stage.residual)

    def _maximum(self, stage: NamedStage) -> None:
        i, (_, rows, columns) = stage.instruction, space(stage.shape)
        channels, height, width = space(stage.in_shape)
        body = f"""\
  for (int32_t a = 0; a < {rows}; a++)
    for (int32_t b = 0; b < {columns}; b++)
      for (int32_t o = 0; o < {channels}; o++) {{
        int any = 0;
        {self.type(stage.name)} most = 0;
        for (int32_t i = 0; i < {i.kernel[0]}; i++)
          for (int32_t j = 0; j < {i.kernel[1]}; j++) {{
            const int32_t h = a * {i.stride[0]} + i * {i.dilation[0]} - {i.padding[0]};
            const int32_t w = b * {i.stride[1]} + j * {i.dilation[1]} - {i.padding[1]};
            if (h < 0 || h >= {height} || w < 0 || w >= {width}) continue;
            if (!any || x[(h * {width} + w) * {channels} + o] > most) most = x[(h * {width} + w) * {channels} + o];
            any = 1;
          }}
        y[(a * {columns} + b) * {channels} + o] = most;
      }}
"""
        self._function(stage.name, body, stage.x)

    def _product(self, node: Node) -> None:
        """Add the weights of each count that is not 0 to the sums of a pixel, and let its neurons fire."""
        stage, g = node.stage, node.geometry
        (channels, height, width), (outputs, rows, columns) = space(stage.in_shape), space(stage.shape)
        each, self.most_outputs = outputs // g.groups, max(self.most_outputs, outputs)
        add = "sum[k] += c;"
        if stage.layer.weight is not None:
            weight = self.weights[stage.name] = self._constant("int8_t", "w", self._arranged(node))
            add = f"for (int32_t o = 0; o < {each}; o++) to[o] += w[o] * c;"
            add = f"""\
const int8_t *w = {weight} + ((i * {g.kernel[1]} + j) * {channels} + k) * {each};
            int32_t *to = sum + k / {channels // g.groups} * {each};
            {add}"""
        body = f"""\
  for (int32_t a = 0, p = 0; a < {rows}; a++)
    for (int32_t b = 0; b < {columns}; b++, p++) {{
      for (int32_t o = 0; o < {outputs}; o++) sum[o] = 0;
      for (int32_t i = 0; i < {g.kernel[0]}; i++)
        for (int32_t j = 0; j < {g.kernel[1]}; j++) {{
          const int32_t h = a * {g.stride[0]} + i * {g.dilation[0]} - {g.padding[0]};
          const int32_t v = b * {g.stride[1]} + j * {g.dilation[1]} - {g.padding[1]};
          if (h < 0 || h >= {height} || v < 0 || v >= {width}) continue;
          for (int32_t k = 0; k < {channels}; k++) {{
            const int32_t c = x[(h * {width} + v) * {channels} + k];
            if (c == 0) continue;
            {add}
          }}
        }}
      for (int32_t o = 0; o < {outputs}; o++) {{
{self._result(node)}
      }}
    }}
"""
        self._function(stage.name, body, stage.x, stage.residual)

    def _arranged(self, node: Node) -> Tensor:
        """Return weights as [kernel, channels, outputs of the group], in the order of the values that they read."""
        weight, outputs, channels = node.weight, node.stage.shape[0], node.stage.in_shape[0]
        assert weight is not None
        if node.stage.x in self.aliases:
            image = space(self.graph.nodes[node.stage.x].stage.in_shape)
            weight = weight.view(outputs, *image).movedim(1, -1)
        groups = node.geometry.groups
        weight = weight.reshape(groups, outputs // groups, channels // groups, -1)
        return weight.permute(3, 0, 2, 1)

    def _result(self, node: Node) -> str:
        """Return what becomes of the sum of a neuron: its count, its current or a sum of the network."""
        stage, table, at = node.stage, node.thresholds, f"p * {node.stage.shape[0]} + o"
        if stage.signal is Tensor:
            return f"        y[{f'o * {math.prod(stage.shape[1:])} + p' if stage is self.last else at}] = sum[o];"
        if table is None:
            return self._potential(node, "(float)sum[o]")
        row = "o" + self._place(node) + ("" if len(table) == 1 else f" + {table[0, ..., 0].numel()} * r[{at}]")
        levels = self.tables[stage.name] = f"{self._constant('int32_t', 't', table)} + ({row}) * {node.most}"
        return f"""\
        const int32_t *t = {levels};
        int32_t c = 0;
        while (c < {node.most} && sum[o] >= t[c]) c++;
        y[{at}] = (uint8_t)c;"""

    def _place(self, node: Node) -> str:
        """Return where the numbers of a pixel's neurons begin, if they differ between pixels."""
        if node.place is None:
            return ""
        return f" + {node.stage.shape[0]} * {self._constant('int32_t', 'p', node.place)}[p]"

    def _potential(self, node: Node, u: str) -> str:
        """Return how a neuron computes its current in floats, and fires if it has a threshold."""
        stage, layer, at = node.stage, node.stage.layer, f"p * {node.stage.shape[0]} + o"
        if stage.name not in self.floats:
            self.floats.append(stage.name)
        lines = [f"float z = {u};"]
        if layer.scale is not None:
            lines.append(f"z = mul({self._constant('float', 's', layer.scale)}[o], z);")
        if layer.shift is not None:
            lines.append(f"z = add(z, {self._constant('float', 'k', layer.shift)}[o]);")
        if stage.residual is not None:
            scale = layer.residual_scale
            more = "1.0f" if scale is None else f"{self._constant('float', 'r', scale)}[o]"
            lines.append(f"z = add(z, mul({more}, (float)r[{at}]));")
        if not stage.fires:
            return "\n".join(f"        {line}" for line in [*lines, f"y[{at}] = z;"])
        theta = float(torch.tensor(stage.instruction.threshold, dtype=torch.float32)).hex()
        assert node.start is not None
        lines += [
            f"z = add({self._constant('float', 'v', node.start)}[o{self._place(node)}], z);",
            "int32_t c = 0;",
            f"for (; c < {node.most} && z >= {theta}f; c++) z = add(z, -{theta}f);",
            f"y[{at}] = (uint8_t)c;",
        ]
        return "\n".join(f"        {line}" for line in lines)

    def _logits(self, node: Node) -> None:
        """Each logit is a sum, rounded to float, times a number, plus a number, as in the network."""
        size = math.prod(node.stage.shape)
        u = "(float)sums[n]" if node.divisor == 1 else f"(float)(sums[n] / {node.divisor}.0)"
        channel = f"n / {size // node.stage.shape[0]}"
        scale, shift = node.logits()
        if scale is not None:
            u = f"mul({self._constant('float', 's', scale)}[{channel}], {u})"
        if shift is not None:
            u = f"add({u}, {self._constant('float', 'k', shift)}[{channel}])"
        self.parts.append(f"""\
void net_logits(const int32_t *sums, float *logits) {{
  for (int32_t n = 0; n < {size}; n++) logits[n] = {u};
}}""")

    def _test(self) -> None:
        """One input, drawn at random, and its sums."""
        drawn = torch.Generator().manual_seed(0)
        counts = torch.randint(self.levels + 1, (1, *self.network.shape), generator=drawn)
        sums = self.graph.sums(counts)
        x, right = self._constant("uint8_t", "x", counts), self._constant("int32_t", "y", sums)
        self.test = f"""\
int net_test(void) {{
  int32_t sums[{sums.numel()}];
  int wrong = net_run({x}, sums);
  for (int32_t n = 0; n < {sums.numel()}; n++) wrong |= sums[n] != {right}[n];
  return wrong;
}}"""

    # --- the files ----------------------------------------------------------------------------------------------------

    def header(self) -> str:
        """Return net.h."""
        floats = f"Neurons that compute in floats: {', '.join(map(self.title, self.floats))}." if self.floats else ""
        sizes = {"inputs": math.prod(self.network.shape), "sums": math.prod(self.last.shape)}
        shapes = {"shape": list(self.network.shape), "sums_shape": list(self.last.shape), "levels": self.levels}
        floats = floats or "No floats but in net_logits."
        return _HEADER.format(ram=self.ram, flash=self.flash, floats=floats, step=self.step.header, **sizes, **shapes)

    def source(self) -> str:
        """Return net.c."""
        check = f"  for (int32_t k = 0; k < NET_INPUTS; k++)\n    if (x[k] > {self.levels}) return 1;\n"
        calls = "".join(f"  {call}\n" for call in self.calls)
        run = f"int net_run(const uint8_t *x, int32_t *sums) {{\n{check * (self.levels < 255)}{calls}  return 0;\n}}"
        arenas = [f"static {ctype} {_ARENAS[ctype]}[{size}];" for ctype, size in self.sizes.items() if size]
        arenas.append(f"static int32_t sum[{self.most_outputs}]; /* of a pixel's neurons */\n")
        text = "\n".join(self.parts)
        used = [(name, sign) for name, sign in (("add", "+"), ("mul", "*")) if f"{name}(" in text]
        rounded = [_ROUNDED.format(name=name, sign=sign) for name, sign in used]
        return "\n".join(['#include "net.h"\n', *arenas, *rounded, text, run, self.test, self.step.source]) + "\n"
