"""A network in evaluation mode as a list of stages, the common form for running, saving and exporting it.

Gains, biases, batch norm, thresholds per channel and quantisation steps are folded into one affine map per channel:
I[t] = scale·(W s_in[t]) + shift/T. A list runs layer by layer on any device; as a program (:mod:`.program`) it runs in
one call.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial, reduce
from typing import Any

import torch
from torch import Tensor, nn

from tandem_ext import ConstantInput, ImpulseInput, SpikeTrain, checks
from tandem_ext._torch import pytree
from tandem_ext.functional.attention import products_of_counts
from tandem_ext.functional.neuron import over_inputs, over_space
from tandem_ext.functional.products import Product
from tandem_ext.functional.settings import Settings
from tandem_ext.ops import compute_dtype
from tandem_ext.train import add_flags

from .. import nn as tnn
from ..nn.attention import no_steps
from ..nn.currents import Currents, combined, currents_of, product
from ..nn.firing import fire
from ..nn.general import of_size
from ..nn.passing import SIGNALS
from ..nn.readouts import answer, real_answer
from ..nn.signals import MeanCounts, describe, effective_counts, means_of
from .instruction import ABSENT, CONVERSIONS, INPUT, TENSORS, Instruction

_ops = torch.ops.tandem
MODES = list(SIGNALS)


class Stage(nn.Module):
    """An instruction with its tensors; its forward runs it on any device.

    Attributes:
        name: the name of the layer in its network; stages may share it.
        instruction: everything but the tensors, whose sizes it has.
        weight, step: [N, C / groups, *kernel], floats, or int8 with ``step`` [N]. With int8, ``scale`` includes the
            step; a readout's weights are step·weight.
        scale, shift, residual_scale: [N], None if neutral. For a readout, shift is the bias; for a mean, scale is the
            gain of each channel.
        index: int32, where each channel [N] or feature [H, W, N], of an image [N, H, W], flat, of a gather
            comes from; -1 is 0.
        v_init: 0-dim, [N], or [N, *space], where spatial sizes may be 1.
        move: the module or function of a stage without weights.
        seen: for each feature of what its layer returns its number in the result of the stage; None: the same order.
    """

    weight: Tensor | None
    step: Tensor | None
    scale: Tensor | None
    shift: Tensor | None
    residual_scale: Tensor | None
    v_init: Tensor | None
    index: Tensor | None
    seen: Tensor | None = None

    def __init__(self, name: str, instruction: Instruction, **tensors: Tensor | None) -> None:
        super().__init__()
        for tensor in TENSORS:
            self.register_buffer(tensor, tensors.get(tensor))
        outputs, channels = instruction.outputs, instruction.channels
        if self.weight is not None:
            outputs, channels = self.weight.shape[:2]
        elif self.scale is not None:
            outputs = len(self.scale)
        self.name = name
        self.instruction = replace(
            instruction,
            axes=instruction.axes if self.weight is None else self.weight.dim() - 2,
            outputs=outputs,
            channels=channels,
            few_bits=self.step is not None,
            v_size=(0, 0) if self.v_init is None or not self.v_init.dim() else (1, 1, *self.v_init.shape[1:])[-2:],
        )
        self.move = self._move() if self.weight is None else None
        self.digits: Tensor | None = None  # set by prepare(); a GPU multiplies them instead of the weight

    def prepare(self) -> None:
        if self.digits is None and self.weight is not None and self.instruction.kind == "layer":
            self.digits = _ops.frozen_digits.default(self.weight, self.instruction.groups)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"digits": None}

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights."""
        numbers = self.weight if self.step is None else self.step
        assert numbers is not None
        return numbers.dtype

    def real_weight(self) -> Tensor:
        """Return the weights for products with real numbers."""
        assert self.weight is not None
        if self.step is None:
            return self.weight
        q = self.weight.to(self.step.dtype)
        return q * over_inputs(self.step, q) if self.instruction.kind == "readout" else q

    def forward(self, x: Any, residual: Any = None) -> Any:
        i = self.instruction
        if self.weight is not None and i.axes == 0 and len(x.shape) > 2:
            was = (
                "was frozen for vectors, without the shape of its tokens: give freeze an example, or call before save()"
            )
            raise ValueError(f"x: layer {self.name!r} {was}; got shape {list(x.shape)}")
        if i.kind == "gather":
            return self._gathered(x, residual)
        if i.kind in ("input", "output"):
            return x
        if i.kind == "sum" and isinstance(x, Tensor):
            x = _each(torch.add, _each(torch.mul, x, self.scale), self.shift)
            return x if residual is None else x + _each(torch.mul, residual, self.residual_scale)
        if i.kind == "sum":
            y = _numbers(x).affine(self.scale, self.shift)
            return y if residual is None else y + _numbers(residual).affine(self.residual_scale, None)
        if i.kind == "neurons":
            return self._fired(x)
        if i.kind == "attention":
            return self._attended(x)
        if self.move is not None:
            if isinstance(x, (ConstantInput, ImpulseInput)):
                return x.replace(x=self.move(x.x), gain=1.0)
            gain = i.gain if self.scale is None else self.scale
            return self.move(x.replace(gain=gain) if isinstance(x, SpikeTrain) else x)
        if i.kind == "readout":
            return self._answer(x)
        return self._spikes(x, residual) if i.fires else self._currents(x)

    def _gathered(self, x: Any, joined: Any) -> Any:
        if isinstance(x, Tensor):
            return self._gather(x, in_order=True) if joined is None else torch.cat([x, joined], 1)
        if isinstance(x, (ConstantInput, ImpulseInput)):
            return x.replace(x=self._gather(x.x, in_order=True))
        if isinstance(x, Currents):
            return combined(self._gather, [x] if joined is None else [x, joined])
        timing = "step" if joined is not None and joined.timing == "step" else x.timing
        parts = [value.stored_as(timing) for value in (x, joined) if value is not None]
        stored = self._gather(*(part.flatten(0, 1) for part in parts)).unflatten(0, parts[0].shape[:2])
        others = {} if joined is None else {"T": max(x.T, joined.T), "_network_T": x.network_T}
        bad = add_flags(x.bad, getattr(joined, "bad", None))
        return x.replace(stored=stored, counts=None, bad=bad, timing=timing, **others)

    def _gather(self, *parts: Tensor, in_order: bool = False) -> Tensor:
        i, index = self.instruction, self.index
        x = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        if index is None:
            return x
        if not i.by_channel:
            x = (x if in_order else x.movedim(1, -1)).flatten(1)
            if x.shape[1] != i.channels:
                raise ValueError(f"x: layer {self.name!r} was frozen for {i.channels} features, got {x.shape[1]}")
        y = x.index_select(1, index.clamp(min=0))
        outside = (index < 0).view(-1, *[1] * (y.dim() - 2))
        y = y.masked_fill(outside, 0)
        if in_order:
            return y.view(len(y), i.outputs, *i.over_axes(i.kernel))
        return y if i.by_channel else y.view(len(y), *i.over_axes(i.kernel), i.outputs).movedim(-1, 1)

    def _fired(self, u: Currents) -> SpikeTrain:
        i, v_init = self.instruction, self.v_init
        if v_init is not None and v_init.dim() > 1:
            v_init = v_init.expand(u.shape[1:])
        neuron: Any = i.threshold, i.leak, 0.0 if v_init is None else v_init, "relu", i.timing, None, i.own_T or None
        settings = Settings(u.T, None, self.scale, self.shift, None, None, 1.0, *neuron)
        train: SpikeTrain = fire(u, settings)[0]
        return train.replace(_network_T=u.T)

    def _attended(self, x: SpikeTrain) -> Currents:
        i = self.instruction
        keys, rest = divmod(x.shape[1] - i.outputs, 2)
        if rest or keys < 1:
            raise ValueError(f"x: expected channels of q, k and {i.outputs} of v, got shape {list(x.shape)}")
        sizes = (0, keys), (keys, keys), (2 * keys, i.outputs)
        parts = (x.map(partial(torch.narrow, dim=-2, start=at, length=n)) for at, n in sizes)
        q, k, v = (part.map(lambda t: t.mT) for part in parts)
        u = products_of_counts(q, k, v, i.groups) * i.gain
        return Currents(u.mT, no_steps, x.network_T, dtype=x._dtype)

    def _move(self) -> Callable[[Any], Any] | None:
        i = self.instruction
        if i.kind in ("sum", "neurons", "gather", "attention", "input", "output"):
            return None
        if i.kind == "flatten":
            return tnn.Flatten(i.first, i.last)
        if i.kind in CONVERSIONS:
            return partial(_converted, CONVERSIONS[i.kind])
        if i.kind == "adaptive_mean":
            return tnn.AdaptiveAvgPool2d(i.kernel)
        if i.kind == "upsample":
            return tnn.Upsample(i.kernel, mode="bilinear", align_corners=i.ceil)
        if i.kind == "max_pool":
            most = tnn.MaxPool1d if i.axes == 1 else tnn.MaxPool2d
            return most(*map(i.over_axes, (i.kernel, i.stride, i.padding, i.dilation)), ceil_mode=i.ceil)
        v_init = 0.0 if self.v_init is None else float(self.v_init) / i.threshold
        neuron: dict[str, Any] = {"v_init": v_init, "timing": i.timing, "spiking": i.kind == "average"}
        average = tnn.AvgPool1d if i.axes == 1 else tnn.AvgPool2d
        return average(*map(i.over_axes, (i.kernel, i.stride, i.padding)), **neuron)

    def _spikes(self, x: Any, residual: Any) -> SpikeTrain:
        assert self.weight is not None
        shape = self._synapses().output_shape(tuple(x.shape), self.weight)  # raises if the input does not fit
        v_init = self.v_init
        if v_init is None:
            v_init = torch.zeros((), device=x.device)
        elif v_init.dim() > 1:
            v_init = v_init.expand(shape[1:])
        if residual is not None and not isinstance(residual, Currents):
            checks.train("residual", residual)
        more = residual.stored_as(self.instruction.timing) if isinstance(residual, SpikeTrain) else residual
        more = residual.residual(self.instruction.timing) if isinstance(residual, Currents) else more
        before = flags_of((x, residual))
        i, network_T = self.instruction, x.network_T
        T = i.own_T or network_T
        spikes, *_, bad = self._run(
            x, steps=T, threshold=i.threshold, leak=i.leak, v_init=v_init, residual=more,
            residual_scale=self.residual_scale, bad=before,
        )  # fmt: skip
        return SpikeTrain.unchecked(spikes, T, None, 1.0, self.dtype, i.timing, bad, network_T)

    def _currents(self, x: Any) -> Currents:
        weight = self.weight if isinstance(x, SpikeTrain) else self.real_weight()
        assert weight is not None
        u = product(x, weight, self._synapses()).affine(self.scale, self.shift)
        u.dtype = self.dtype
        return u

    def _run(self, x: Any, **neuron: Any) -> tuple[Tensor, ...]:
        """Run the neurons by their op; return (stored, counts, mask, v, bad)."""
        settings: dict[str, Any] = {"gate": "relu", "timing": self.instruction.timing}
        settings |= {"train": False, "return_v": False, "scale": self.scale, "shift": self.shift, **neuron}
        if not isinstance(x, SpikeTrain):
            op, weight = _ops.constant_if if isinstance(x, ConstantInput) else _ops.impulse_if, self.real_weight()
            checks.direct_dtype(x.x, weight)
            return op.default(self._synapses().direct(x.x, weight, None), x.T, **settings)
        synapses = (self._synapses().padded(x.stored_as(self.instruction.timing)), x.T, self.weight)
        if self.instruction.axes == 0:
            return _ops.linear_if.default(*synapses, **settings, digits=self.digits)
        return _ops.conv_if.default(*synapses, *self._synapses().geometry(), **settings, digits=self.digits)

    def _synapses(self) -> Product:
        i = self.instruction
        below, right = i.after
        sides = (0, right, 0, below)[: 2 * i.axes] if below or right else ()
        return Product(i.over_axes(i.stride), i.over_axes(i.padding), i.over_axes(i.dilation), i.groups, sides)

    def _answer(self, x: Any) -> Tensor:
        gain, synapses, means = self.instruction.gain, self._synapses(), means_of(x)
        counted = x if means is None or isinstance(means.gain, Tensor) or means.gain != 1.0 else means
        if isinstance(counted, (SpikeTrain, MeanCounts)):
            assert self.weight is not None
            return answer(counted, self.weight, self.step, gain, self.shift, synapses, self.dtype)
        x = effective_counts(x)
        return real_answer(x if gain == 1.0 else x * gain, self.real_weight(), self.shift, synapses)


def _each(f: Callable[[Tensor, Tensor], Tensor], x: Tensor, values: Tensor | None) -> Tensor:
    """Return f of numbers and a value of each channel, rounded once."""
    return x if values is None else f(x.to(compute_dtype(x.dtype)), over_space(values, x.shape)).to(x.dtype)


def flags_of(signals: Iterable[Any]) -> Tensor | None:
    """Return the NaN flags of those that are trains."""
    return reduce(add_flags, [each.bad for each in signals if isinstance(each, SpikeTrain)], None)


def _numbers(x: SpikeTrain | Currents) -> Currents:
    """Return counts or spikes as currents, without a gain."""
    return currents_of(x.replace(gain=1.0) if isinstance(x, SpikeTrain) else x)


def _converted(timing: str, x: SpikeTrain) -> SpikeTrain:
    return x.replace(stored=x.stored_as(timing), counts=None, timing=timing)


def check_finite(layers: nn.Module) -> None:
    """Raise ValueError, with the name of the layer, if a constant is infinite or NaN, or on the meta device."""
    for name, value in (*layers.named_parameters(), *layers.named_buffers()):
        if value.is_meta or (value.is_floating_point() and not bool(value.isfinite().all())):
            layer, _, what = name.rpartition(".")
            if isinstance(layers, Stages):
                layer = layers.get_submodule(layer).name  # type: ignore[assignment]
            fault = "without values, on the meta device" if value.is_meta else "that is not finite"
            raise ValueError(f"net: layer {layer!r} has a {what} {fault}")


def shown(inputs: Sequence[Any], modes: Sequence[str]) -> list[Any]:
    """Return inputs where pixels are trains of counts."""
    return [
        SIGNALS[mode](x, 1) if mode == "pixels" and isinstance(x, Tensor) else x
        for x, mode in zip(inputs, modes, strict=True)
    ]


class Stages(nn.Module):
    """A network in evaluation mode: all stages in order; the last returns the answer.

    Attributes:
        mode, modes: the kind of the first input and of each, as in ``tnn.Encoder``.
        T: the number of time steps; None: the T of each input train.
        structure: of the answers, with their numbers among the stages of kind "output"; 0: the last result alone.
        fired: the name of a layer whose spikes or currents are an answer, or None.
        sized: whether they were lowered for samples of one shape.
        shapes: the only shapes of a sample of each input that they answer; None: any that fit.
        unsized: whether a linear layer may read tokens, which only the shape of a sample says.
    """

    fired: str | None = None
    sized = unsized = False
    shapes: Sequence[tuple[int, ...]] | None = None

    def __init__(self, stages: Iterable[Stage], mode: str, T: int | None, structure: Any = 0) -> None:
        super().__init__()
        self.stages: Any = nn.ModuleList(stages)
        self.mode, self.T, self.structure = mode, T, structure
        instructions: Any = [stage.instruction for stage in self.stages]
        self.modes = [mode, *(MODES[i.first] for i in instructions if i.kind == "input")]
        read: Any = enumerate(instructions)
        readers = {value: n for n, i in read for value in (i.input, i.residual)}
        self._done: Any = {n: [value for value, last in readers.items() if last == n] for n in readers.values()}

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the weights, which is that of the answer."""
        return next((stage.dtype for stage in self.stages if stage.weight is not None), torch.float32)

    def signal(self, x: Any, mode: str) -> Any:
        """Return an input as a signal for the first stages; raise TypeError or ValueError if it does not fit."""
        if isinstance(x, SpikeTrain) != (mode == "events"):
            wanted = "a SpikeTrain" if mode == "events" else "a tensor [B, *features], no SpikeTrain"
            raise TypeError(f"x: the network takes {wanted}, got {describe(x)}")
        if not isinstance(x, SpikeTrain):
            T: Any = self.T
            return SIGNALS[mode](x, T)
        if self.T not in (None, x.T):
            raise ValueError(f"x: the network takes a SpikeTrain of T={self.T} steps, a stream also of 1, got T={x.T}")
        return x.replace(gain=1.0)

    def forward(self, *inputs: Any, watch: Callable[[int, Any, Any], None] | None = None) -> Any:
        """Return the answers. ``watch(number, x, y)`` is called with the input and output of each stage."""
        values: dict[int, Any] = {}
        answers = []
        for number, x, y in self.run(inputs, values):
            if self.stages[number].instruction.kind == "output":
                answers.append(y)
            if watch is not None:
                watch(number, x, y)
            for value in self._done.get(number, ()):
                del values[value]
        return self.answer(answers or [y])

    def run(self, inputs: Sequence[Any], values: dict[int, Any]) -> Iterator[tuple[int, Any, Any]]:
        """Run the stages whose values are missing; yield the number, the input and the output of each."""
        if len(inputs) != len(self.modes):
            raise TypeError(f"x: the network takes {len(self.modes)} inputs, got {len(inputs)}")
        signals = [self.signal(x, mode) for x, mode in zip(inputs, self.modes, strict=True)]
        if self.shapes is not None:
            for x, shape in zip(signals, self.shapes, strict=True):
                of_size(x, "x", shape)
        values |= {ABSENT: None, INPUT: signals[0]}
        numbers = iter(signals[1:])
        for number, stage in enumerate(self.stages):
            i = stage.instruction
            given = next(numbers) if i.kind == "input" else None
            if number not in values:
                x = values[i.input] if given is None else given
                values[number] = stage(x, values[i.residual])
                yield number, x, values[number]

    def answer(self, answers: list[Tensor]) -> Any:
        """Return answers in the structure of the network's."""
        return answers[0] if self.structure == 0 else pytree.tree_map(answers.__getitem__, self.structure)
