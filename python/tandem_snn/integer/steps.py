"""The part of a program in C that takes a step of neurons that follow their input."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from ..nn.currents import Currents
from .graph import MOVES, Node, in_order, space

if TYPE_CHECKING:
    from .c import Program

_HEADER = """
#ifdef NET_STEP /* {ram} bytes of RAM more */
#define NET_NEURONS {neurons}
/* Takes one step of neurons that follow their input, at first from silence: changes are what is added to the counts of
   the input, and each neuron moves by at most one. Returns how many moved; if none, the sums are those of net_run. */
int32_t net_step(const int8_t *changes, int32_t *sums);
extern int8_t net_moves[NET_NEURONS]; /* how each neuron moved, channels last, of: {layers} */
#endif
"""


class Steps(NamedTuple):
    """The texts for the header and the source."""

    header: str
    source: str


def following(program: Program) -> Steps:
    """Return net_step, if all neurons have thresholds."""
    nodes = [node for node in program.graph.nodes.values() if node.stage.name in program.runs]
    for node in nodes:
        if node.stage.signal is Currents or (node.stage.fires and node.thresholds is None):
            return Steps(f"/* There is no net_step: {program.title(node.stage.name)} computes in floats. */\n", "")
    firing = [node.stage for node in nodes if node.stage.fires]
    if not firing:
        return Steps("/* There is no net_step: nothing fires. */\n", "")
    levels, size = program.network.levels, math.prod(program.network.shape)
    channels, numbers = program.network.shape[0], {"input": 0}
    taken = "k" if in_order(program.network.shape) else f"k % {channels} * {size // channels} + k / {channels}"
    arrays, functions, lines, at = [f"static uint8_t c0[{size}];", f"static int8_t d0[{size}];"], list[str](), [], 0
    ram, scratch = 2 * size, 0
    for number, node in enumerate(nodes, 1):
        stage, n = node.stage, math.prod(node.stage.shape)
        numbers[stage.name] = number
        x, r = (numbers.get(program.root(str(name))) for name in (stage.x, stage.residual))
        arguments = ", ".join(f"c{value}" for value in (x, r) if value is not None)
        run, is_last = program.runs[stage.name], stage is program.last
        if stage.name in levels:
            arrays.append(f"static uint8_t c{number}[{n}];")
            arrays.append(f"#define d{number} (net_moves + {at})" if stage.fires else f"static int8_t d{number}[{n}];")
            at, ram = at + n * stage.fires, ram + 2 * n
        if stage.instruction.kind in MOVES:
            scratch = max(scratch, n)
            lines += [f"{run}({arguments}, scratch);", f"change({n}, c{number}, d{number});"]
            continue
        if stage.x not in levels:
            lines.append(f"{run}(u{x}, {'sums' if is_last else f'u{number}'});")
        else:
            functions.append(_add(program, node, number))
            lines.append(f"add{number}(d{x}, u{number});")
        if stage.x in levels or not is_last:
            arrays.append(f"static int32_t u{number}[{n}];")
            ram += 4 * n
        if stage.fires:
            functions.append(_fire(program, node, number))
            lines.append(f"moved += fire{number}({'' if r is None else f'c{r}, '}u{number}, c{number}, d{number});")
        elif is_last and stage.x in levels:
            pixels, outputs = n // stage.shape[0], stage.shape[0]
            lines.append(
                f"for (int32_t k = 0; k < {n}; k++) sums[k % {outputs} * {pixels} + k / {outputs}] = u{number}[k];"
            )
    if scratch:
        functions.insert(0, _CHANGE.format(scratch=scratch))
    body, parts = "".join(f"  {line}\n" for line in lines), "\n".join([*arrays, *functions])
    source = f"""
#ifdef NET_STEP
int8_t net_moves[NET_NEURONS];
{parts}
int32_t net_step(const int8_t *changes, int32_t *sums) {{
  int32_t moved = 0;
  for (int32_t k = 0; k < {size}; k++) {{
    d0[k] = changes[{taken}];
    c0[k] = (uint8_t)(c0[k] + d0[k]);
    moved += d0[k] != 0;
  }}
{body}  return moved;
}}
#endif"""
    names = ", ".join(f"{program.title(stage.name)} {list(stage.shape)}" for stage in firing)
    return Steps(_HEADER.format(ram=ram + scratch, neurons=at, layers=names), source)


_CHANGE = """\
static uint8_t scratch[{scratch}];
static void change(int32_t n, uint8_t *y, int8_t *dy) {{
  for (int32_t k = 0; k < n; k++) {{
    dy[k] = (int8_t)(scratch[k] - y[k]);
    y[k] = scratch[k];
  }}
}}"""


def _add(program: Program, node: Node, number: int) -> str:
    """Return the function that adds the weights of inputs that changed to the sums of what reads them."""
    stage, g = node.stage, node.geometry
    (channels, height, width), (outputs, rows, columns) = space(stage.in_shape), space(stage.shape)
    each = outputs // g.groups
    add, weight = f"u[(a * {columns} + b) * {outputs} + k] += x[n];", program.weights.get(stage.name)
    if weight is not None:
        add = f"""\
const int8_t *w = {weight} + ((i * {g.kernel[1]} + j) * {channels} + k) * {each};
            int32_t *to = u + (a * {columns} + b) * {outputs} + k / {channels // g.groups} * {each};
            for (int32_t o = 0; o < {each}; o++) to[o] += w[o] * x[n];"""
    return f"""\
static void add{number}(const int8_t *x, int32_t *u) {{
  for (int32_t h = 0, n = 0; h < {height}; h++)
    for (int32_t v = 0; v < {width}; v++)
      for (int32_t k = 0; k < {channels}; k++, n++) {{
        if (x[n] == 0) continue;
        for (int32_t i = 0; i < {g.kernel[0]}; i++)
          for (int32_t j = 0; j < {g.kernel[1]}; j++) {{
            const int32_t top = h + {g.padding[0]} - i * {g.dilation[0]}, a = top / {g.stride[0]};
            const int32_t left = v + {g.padding[1]} - j * {g.dilation[1]}, b = left / {g.stride[1]};
            if (top < 0 || top % {g.stride[0]} != 0 || a >= {rows}) continue;
            if (left < 0 || left % {g.stride[1]} != 0 || b >= {columns}) continue;
            {add}
          }}
      }}
}}"""


def _fire(program: Program, node: Node, number: int) -> str:
    """Return the function that moves counts whose sums have passed a threshold."""
    outputs, pixels = node.stage.shape[0], math.prod(node.stage.shape[1:])
    residual = "" if node.stage.residual is None else "const uint8_t *r, "
    return f"""\
static int32_t fire{number}({residual}const int32_t *u, uint8_t *y, int8_t *dy) {{
  int32_t moved = 0;
  for (int32_t p = 0, n = 0; p < {pixels}; p++)
    for (int32_t o = 0; o < {outputs}; o++, n++) {{
      const int32_t *t = {program.tables[node.stage.name]};
      const int rises = y[n] < {node.most} && u[n] >= t[y[n]], falls = y[n] > 0 && u[n] < t[y[n] - 1];
      dy[n] = (int8_t)(rises - falls);
      y[n] = (uint8_t)(y[n] + dy[n]);
      moved += rises | falls;
    }}
  return moved;
}}"""
