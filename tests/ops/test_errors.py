"""Bad arguments: a ValueError or TypeError that names the argument and what is allowed."""

import inspect
import math
import re

import numpy as np
import pytest
import torch
from cases import dyadic, train
from torch import nn

import tandem_ext as te
import tandem_snn.nn as tnn
from tandem_snn import freeze

f, nan = te.functional, math.nan
X, IMAGE, W = train(8, 3, 7), train(8, 3, 4, 6, 6), dyadic(5, 7)
KERNEL, BYTES = dyadic(6, 4, 3, 3), torch.ones(5, 7, dtype=torch.int8)
PLANES, ONES = X.planes, train(8, 2, 4, rate=1.0)
NEURON = [8, 1.0, 1.0, "relu", "step", True, True, None, None, None, None, None, None]


def linear(**changes):
    arguments = {"x": X, "weight": W} | changes
    return lambda: f.linear_if(arguments.pop("x"), arguments.pop("weight"), **arguments)


def conv(**changes):
    arguments = {"x": IMAGE, "weight": KERNEL} | changes
    return lambda: f.conv2d_if(arguments.pop("x"), arguments.pop("weight"), **arguments)


def counts(numbers, T=3):
    return lambda: te.SpikeTrain.from_counts(torch.tensor(numbers), T)


def frames(numbers, **options):
    return lambda: te.SpikeTrain.from_frames(torch.tensor(numbers), **options)


def events(recording, shape, **options):
    return lambda: te.SpikeTrain.from_events(recording, shape, 8, **options)


def bn(**changes):
    return lambda: f.bn_if(X, W, **changes)


def layer_of(threshold):
    """A tensor of a layer is checked when it is used."""
    layer = tnn.Linear(7, 2)
    layer.threshold = threshold
    return lambda: layer(X)


@pytest.mark.parametrize(("call", "error", "message"), [
    # trains
    (lambda: te.SpikeTrain(PLANES, 0), ValueError, "T: expected an int from 1 to 65535, got 0"),
    (lambda: te.SpikeTrain(PLANES, 65536), ValueError, "T: expected"),
    (lambda: te.SpikeTrain(PLANES, True), TypeError, "T: expected an int from 1 to 65535, got True (bool)"),
    (lambda: te.SpikeTrain(PLANES, 8.0), TypeError, "T: expected"),
    (lambda: te.SpikeTrain(PLANES, 9), ValueError, "planes: T=9 needs ceil(T/8)=2 planes, got 1"),
    (lambda: te.SpikeTrain(train(8, 1, 9, rate=1.0).planes, 7), ValueError, "planes: a bit is set beyond T=7"),
    (lambda: te.SpikeTrain(PLANES.float(), 8), TypeError, "planes: expected uint8"),
    (lambda: te.SpikeTrain([1, 2], 8), TypeError, "planes: expected uint8"),
    (lambda: te.SpikeTrain(PLANES[0, 0], 8), ValueError, "planes: expected at least two dimensions"),
    (lambda: te.SpikeTrain(PLANES, 8, X.counts[0]), ValueError, "counts: expected shape [3, 7]"),
    (lambda: te.SpikeTrain(PLANES, 8, PLANES[0]), TypeError, "counts: expected a floating-point"),
    (lambda: te.SpikeTrain(PLANES, 8, X.counts.to("meta")), ValueError, "counts is on meta, but planes is on cpu"),
    (lambda: te.SpikeTrain(PLANES, 8, gain="1"), TypeError, "gain: expected"),
    (lambda: te.SpikeTrain(PLANES, 8, gain=nan), ValueError, "gain: expected a finite"),
    (lambda: te.SpikeTrain(PLANES, 8, gain=torch.ones(3)), ValueError, "gain: expected"),
    (lambda: te.SpikeTrain(PLANES, 8, gain=torch.tensor(1)), TypeError, "gain: expected"),
    (lambda: te.SpikeTrain.from_dense(torch.full((8, 3, 7), 0.5)), ValueError, "only 0 and 1, got 0.5: thresh"),
    (lambda: te.SpikeTrain.from_dense(torch.full((8, 3, 7), nan)), ValueError, "0 and 1, got nan: "),
    (lambda: te.SpikeTrain.from_dense(torch.full((8, 3, 7), 2)), ValueError, "spikes: expected only 0 and 1"),
    (lambda: te.SpikeTrain.from_dense(torch.zeros(8)), ValueError, "spikes: expected at least two dimensions"),
    (lambda: te.SpikeTrain.from_dense(torch.zeros(0, 3)), ValueError, "T from 1 to 65535"),
    (lambda: te.SpikeTrain.from_dense(torch.zeros(8, 3, dtype=torch.complex64)), TypeError, "spikes: expected a real"),
    (lambda: te.SpikeTrain.from_dense([[0, 1]]), TypeError, "spikes: expected"),
    (lambda: te.SpikeTrain.from_events(([0], [0]), [4], 0), ValueError, "T: expected"),
    (lambda: X[1.5], TypeError, "index: expected"), (lambda: X[True], TypeError, "index: expected"),
    (lambda: X.to(torch.int32), TypeError, "dtype: expected a floating-point type"),
    (lambda: te.ConstantInput(torch.zeros(3, 4, dtype=torch.int64), 8), TypeError, "x: expected a floating-point"),
    (lambda: te.ConstantInput(torch.tensor(1.0), 8), ValueError, "x: expected a batch dimension"),
    (lambda: train(8, 3, 7).to_dense(8), TypeError, "such as torch.float32, got 8 (int)"),
    (lambda: te.SpikeTrain.from_dense(PLANES.numpy()), TypeError, "got a NumPy array of uint8 and shape [1, 3, 7]"),
    (lambda: te.SpikeTrain(PLANES, 8, bad=torch.zeros(4)), ValueError, "bad: expected shape [3], got [4]"),
    (lambda: te.SpikeTrain(PLANES, 8, bad=PLANES[0, :, 0]), TypeError, "bad: expected a floating-point"),
    (lambda: te.SpikeTrain(PLANES, 8, timing="burst"), ValueError, "timing: expected one of 'step', 'window', got"),
    (lambda: te.SpikeTrain(torch.tensor([[[2]]], dtype=torch.uint8), 3, timing="window"), ValueError,
     "planes: with timing='window' a neuron spikes in the first steps"),
    # trains of counts and of frames
    (counts([[4]]), ValueError, "counts: expected whole numbers from 0 to T=3, got 4"),
    *((counts([[value]]), ValueError, "counts: expected whole numbers") for value in (-1, 0.5, nan)),
    (counts(1), ValueError, "counts: expected a batch dimension"),
    (counts([[True]]), TypeError, "counts: expected a tensor of whole numbers"),
    (lambda: te.SpikeTrain.from_counts([[1]], 3), TypeError, "counts: expected a tensor of whole numbers"),
    (counts([[1]], 256), ValueError, "T: expected an int from 1 to 255"),
    *((frames([[value]]), ValueError, "frames: expected counts") for value in (-1, 0.5, nan)),
    (frames([1]), ValueError, "frames: expected at least two"),
    (lambda: te.SpikeTrain.from_frames([[1]]), TypeError, "frames: expected a real tensor"),
    (frames([[1]], substeps=0), ValueError, "substeps: expected a positive int, got 0"),
    (lambda: te.SpikeTrain.from_frames(torch.ones(32768, 1), substeps=2), ValueError, "T from 1 to"),
    (lambda: te.SpikeTrain.from_dense(torch.tensor([[[2]]])), ValueError, "from_frames"),
    # cat
    (lambda: te.cat([]), ValueError, "signals: expected at least one"),
    (lambda: te.cat([X, torch.zeros(1)]), TypeError, "or ImpulseInput, got ['SpikeTrain', 'Tensor']"),
    (lambda: te.cat(X), TypeError, "signals: expected a sequence of SpikeTrain, ConstantInput or ImpulseInput, got S"),
    (lambda: te.cat([X, train(7, 3, 7)]), ValueError, "signals: expected the same T, got 8 and 7"),
    (lambda: te.cat([X, train(8, 3, 6)]), ValueError, "[3, 7] and [3, 6] differ outside dimension 0"),
    (lambda: te.cat([X, train(8, 3, 7, gain=2.0)]), ValueError, "gain 1.0 and 2.0"),
    (lambda: te.cat([X, te.ConstantInput(dyadic(3, 7), 8)]), TypeError, "one kind"),
    (lambda: te.cat([X], dim=2), ValueError, "dim: expected"),
    # layers: input and weight
    (linear(x=torch.zeros(8, 3, 7)), TypeError, "x: expected a SpikeTrain, ConstantInput or ImpulseInput"),
    (linear(x=PLANES), TypeError, "SpikeTrain.from_dense"),
    (linear(x=train(8, 3, 6)), ValueError, "x has 6 features (shape [3, 6]), but weight [5, 7] takes 7"),
    (linear(x=IMAGE), ValueError, "x: expected shape [B, K], got [3, 4, 6, 6]: flatten its features"),
    (linear(x=train(8, 3, 4, 7)), ValueError, "got [3, 4, 7]: for tokens use Conv1d(7, 5, 1) on [B, K, tokens]"),
    (linear(weight=W.int()), TypeError, "weight: expected a float32"),
    (linear(weight=KERNEL), ValueError, "weight: expected [N, K]"),
    (linear(weight=BYTES, x=te.ConstantInput(dyadic(3, 7), 8)), TypeError, "weight: int8 weights multiply spikes"),
    (linear(x=te.ConstantInput(dyadic(3, 7).double(), 8)), TypeError, "x is torch.float64, but weight is torch.float"),
    # layers: neurons
    (linear(treshold=1.0), TypeError, "treshold: no such argument; neurons have threshold, leak"),
    (linear(threshold=0.0), ValueError, "threshold: expected a positive number within float32's range, got 0.0"),
    *((linear(threshold=value), ValueError, "threshold: expected")
      for value in (-1, nan, math.inf, 1e-46, 1e39)),  # the last two are 0 and infinite in float32
    (linear(v_init=1e39), ValueError, "v_init: expected"),
    *((linear(threshold=value), TypeError, "threshold: expected") for value in ("1", True, torch.tensor(1))),
    (linear(threshold=torch.ones(4)), ValueError, "threshold: expected shape [5]"),
    (linear(threshold=torch.tensor([1.0, 1.0, 1.0, 1.0, -1.0])), ValueError, "threshold: expected positive"),
    (linear(threshold=torch.tensor(nan)), ValueError, "threshold: expected positive"),
    (layer_of(torch.tensor([1.5, -1.0])), ValueError, "threshold: expected positive values, got -1"),
    (lambda: tnn.Linear(7, 20, threshold=torch.zeros(20))(X), ValueError, "threshold: expected positive values, got 0"),
    # sparse tensors
    (linear(weight=W.to_sparse()), TypeError, "weight: expected a float32, bfloat16, float16, float64 or int8 tensor, "
     "got a torch.float32 torch.sparse_coo tensor of shape [5, 7] on cpu"),
    (lambda: te.SpikeTrain.from_dense(torch.eye(3).to_sparse()), TypeError, "spikes: expected a real tensor"),
    (lambda: tnn.Encoder(8)(torch.eye(3).to_sparse()), TypeError, "x: expected a floating-point tensor [B, *features], "
     "got a torch.float32 torch.sparse_coo tensor of shape [3, 3] on cpu: a dense x.float() is an image"),
    (linear(leak=0.0), ValueError, "leak: expected a float in (0, 1]"),
    *((linear(leak=value), ValueError, "leak: expected") for value in (1.5, nan)),
    (linear(leak=None), TypeError, "leak: expected a float in (0, 1], got None (NoneType)"),
    (linear(v_init=nan), ValueError, "v_init: expected a finite number"),
    (linear(v_init=torch.tensor(nan)), ValueError, "v_init: expected numbers, got NaN"),
    (linear(v_init=torch.ones(4)), ValueError, "v_init: expected"),
    (linear(v_init=torch.nn.Parameter(torch.ones(5))), ValueError, "v_init: it is not learned and has no gradient"),
    *((linear(v_init=value), TypeError, "v_init: expected") for value in ("0", torch.ones(5, dtype=torch.int64))),
    (linear(gate="sigmoid"), ValueError, "gate: expected one of 'relu', 'clip', got 'sigmoid'"),
    *((call, ValueError, "gate: expected one of 'relu', 'clip'") for call in (
        linear(gate=None), linear(timing="window", gate="Clip"), lambda: tnn.Linear(3, 2, gate="none"),
        lambda: tnn.Neurons(gate="none"), lambda: te.functional.couple(train(8, 3), torch.ones(3), gate="none"),
    )),
    (linear(steps=0), ValueError, "steps: expected a positive int"), (linear(steps=1.5), TypeError, "steps: expected"),
    (linear(bias=torch.ones(4)), ValueError, "bias: expected shape [5], one value per channel, got [4]"),
    (linear(scale=torch.ones(1)), ValueError, "scale: expected shape [5]"),
    (linear(shift=torch.ones(5, 1)), ValueError, "shift: expected shape [5]"),
    (linear(scale=2.0), TypeError, "scale: expected"),
    (linear(shift=torch.ones(5, dtype=torch.int64)), TypeError, "shift: expected"),
    (linear(residual=train(7, 3, 5)), ValueError, "residual: expected a train of T=8 steps as x has, got T=7"),
    (linear(residual=train(8, 3, 4)), ValueError, "residual: expected a train of shape [3, 5]"),
    (linear(residual=dyadic(3, 5)), ValueError, "residual: expected currents of shape [8, 3, 5]"),
    (linear(residual=dyadic(8, 3, 5).int()), TypeError, "residual: expected"),
    (linear(residual=te.ConstantInput(dyadic(3, 5), 8)), TypeError, "residual: expected a SpikeTrain"),
    # timing
    (linear(timing="late"), ValueError, "timing: expected one of 'step', 'window', got 'late'"),
    (linear(timing=None), ValueError, "timing: expected one of"),
    (linear(timing="window", leak=0.9), ValueError, "leak: with timing='window' neurons do not leak, expected 1"),
    (linear(timing="window", steps=256), ValueError, "steps: expected an int from 1 to 255 with timing='window'"),
    (linear(timing="window", residual=torch.ones(2, 3, 5)), ValueError, "residual: expected currents of shape [8"),
    (linear(residual=torch.ones(1, 3, 5)), ValueError, "their sum over the window is for layers with timing='window'"),
    # gains of channels
    (linear(x=te.SpikeTrain.unchecked(PLANES, 8, None, torch.ones(3))), ValueError, "gain: "),
    (lambda: f.linear_if(train(8, 3, 7, gain=torch.rand(7)), torch.ones(5, 7, dtype=torch.int8), scale=torch.ones(5)),
     ValueError, "weights of few bits are integers"),
    # convolutions
    (conv(stride=0), ValueError, "stride: expected at least 1, got 0"),
    (conv(stride=(1, 1, 1)), TypeError, "stride: expected an int or 2 ints"),
    (conv(stride=1.0), TypeError, "stride: expected an int"),
    (conv(padding=-1), ValueError, "padding: expected at least 0"),
    (conv(padding="full"), ValueError, "padding: expected"),
    (conv(padding="same", stride=2), ValueError, "padding: 'same' needs stride 1"),
    (conv(dilation=0), ValueError, "dilation: expected at least 1"),
    (conv(dilation=3), ValueError, "a kernel of 3 with dilation 3 spans 7, more than the padded input's 6"),
    (conv(weight=dyadic(6, 4, 7, 3)), ValueError, "more than the padded input's 6"),
    (conv(groups=2), ValueError, "x has 4 features (shape [3, 4, 6, 6]), but weight [6, 4, 3, 3] takes 8"),
    (conv(groups=4, weight=dyadic(6, 1, 3, 3)), ValueError, "groups: expected a divisor of the 6 output channels"),
    (conv(groups=0), ValueError, "groups: expected a positive int"),
    (conv(weight=W), ValueError, "weight: expected [N, K/groups, k] or [N, K/groups, kh, kw]"),
    (conv(x=X), ValueError, "x: expected shape [B, C, H, W]"),
    (lambda: f.conv1d_if(IMAGE, dyadic(6, 4, 3)), ValueError, "x: expected shape [B, C, H]"),
    # scan
    (lambda: f.if_scan(X), TypeError, "currents: expected a floating-point tensor"),
    (lambda: f.if_scan(torch.zeros(8, 3, 5, dtype=torch.int32)), TypeError,
     "a ConstantInput or an ImpulseInput, got a torch.int32 tensor of shape [8, 3, 5] on cpu"),
    (lambda: f.if_scan(torch.zeros(8)), ValueError, "currents: expected at least two dimensions"),
    (lambda: f.if_scan(torch.zeros(65536, 1, 1)), ValueError, "currents: expected T from 1 to 65535"),
    (lambda: f.if_scan(torch.zeros(8, 3, 5), shift=torch.ones(3)), ValueError, "shift: expected shape [5]"),
    # batch norm
    *((lambda B=B: f.bn_if(train(8, B, 7), W), ValueError, f"than one value per channel, got {B}") for B in (0, 1)),
    (lambda: f.bn_if(X, BYTES), TypeError, "weight: expected a float32, bfloat16, float16 or float64 tensor"),
    *((bn(**{name: torch.ones(4)}), ValueError, f"{name}: expected shape [5]") for name in ("gamma", "beta", "bias")),
    *((bn(eps=value), ValueError, "eps: expected") for value in (-1.0, nan)),
    (lambda: f.bn_if(X.counts, W), TypeError, "x: expected a SpikeTrain, ConstantInput or ImpulseInput"),
    (lambda: f.bn_if(X, W[0]), ValueError, "weight: expected [N, K] or [N, K/groups, k] or [N, K/groups, kh, kw]"),
    (lambda: f.bn_if(X, W, stride=2), ValueError, "a weight [N, K] takes none, got (2, 0, 1, 1)"),
    # couple
    (lambda: f.couple(PLANES, dyadic(3, 7)), TypeError, "train: expected a SpikeTrain"),
    (lambda: f.couple(X, dyadic(3, 6)), ValueError, "z: expected shape [3, 7]"),
    (lambda: f.couple(X, PLANES[0]), TypeError, "z: expected a floating-point"),
    (lambda: f.couple(X, dyadic(3, 7), gate="x"), ValueError, "gate: expected"),
    # devices
    (linear(weight=W.to("meta")), ValueError, "x is on cpu, but weight is on meta: move one of them"),
    (conv(weight=KERNEL.to("meta")), ValueError, "x is on cpu, but weight is on meta"),
    *((linear(**{name: torch.ones(5, device="meta")}), ValueError, f"{name} is on meta, but the layer is on cpu")
      for name in ("bias", "scale", "shift", "threshold", "v_init")),
    *((linear(residual=value.to("meta")), ValueError, "residual is on meta, but the layer is on cpu")
      for value in (train(8, 3, 5), dyadic(8, 3, 5))),
    (lambda: f.couple(X, dyadic(3, 7).to("meta")), ValueError, "z is on meta, but train is on cpu"),
    # what is for tensors
    *((call, (TypeError, AttributeError), message) for call, message in (
        (lambda: torch.stack([X, X]), "torch's stack takes no SpikeTrain: tandem_ext.cat"),
        (lambda: nn.Linear(7, 3)(X), "use tandem_snn.nn.Linear, or Readout for the outputs of the network"),
        *((add, "neurons=False; tandem_snn.nn.Residual") for add in (lambda: X + X, lambda: 1 + X, lambda: ONES + X)),
        (lambda: nn.GELU()(X), "gelu takes no SpikeTrain: layers that do are in tandem_snn.nn; to_dense()"),
        (lambda: nn.ReLU()(X), "relu takes no SpikeTrain: remove it, the neurons are in the layer before it"),
        (lambda: nn.BatchNorm1d(7)(X), "for batch norm give the layer before it norm=True"),
        (lambda: nn.functional.batch_norm(X, W, W), "SpikeTrain: give the layer before it norm=True"),
        (lambda: nn.Conv2d(5, 3, 3)(te.ConstantInput(KERNEL, 8)), "no ConstantInput: use tandem_snn.nn.Conv2d"),
    )),
    *((linear(gate=gate), ValueError, "gate: expected one of 'relu', 'clip', got a") for gate in (np.arange(3), W)),
    (lambda: te.SpikeTrain(PLANES, 8, counts=[1, 2]), TypeError, "counts: expected a floating-point tensor of shape"),
    *((lambda dim=dim: te.cat([X, X], dim), ValueError, "dim: expected a dimension of [3, 7], got ")
      for dim in (2, -3, "channels", [0], 0.5)),
    # samples
    *((lambda i=i: X[i], IndexError, "3 is out of range") for i in (3, np.int64(3))),
    (lambda: X["x"], TypeError, "index: "),
    # recordings
    (events({"t": [0]}, [4]), ValueError, "recording: features (4,) need the fields t, x; missing: {'x'}"),
    (events({"x": [0]}, [4]), ValueError, "missing: {'t'}"),
    (events({"t": [0], "x": [0]}, [2, 4]), ValueError, "features (2, 4) need the fields t, p, x; missing: {'p'}"),
    (events({"t": [0], "x": [4]}, [4]), ValueError, "x: expected addresses in 0..3, got 4..4"),
    (events({"t": [0], "x": [-1]}, [4]), ValueError, "x: expected addresses in 0..3, got -1..-1"),
    (events({"t": [0, 1], "x": [1]}, [4]), ValueError, "x: expected 2 values, as many as there are times, got 1"),
    (events({"t": [[0]], "x": [1]}, [4]), ValueError, "t: expected a 1-d array, one value per event, got shape (1, 1)"),
    (events(([math.nan], [1]), [4]), ValueError, "recording: a time is NaN"),
    (events(([2**62, -(2**62)], [0, 1]), [4]), ValueError, f"recording: the times {-(2**62)} and {2**62} are too far"),
    (events(([2**60, 0], [0, 1]), [4]), ValueError, f"recording: the times 0 and {2**60} are too far apart for T=8"),
    (events(([0], [1]), [4], window=(0, 2**70)), ValueError, "recording: the times 0 and 1180591620717411303424 are"),
    (events(([1e308, -1e308], [0, 1]), [4]), ValueError, "recording: the times -1e+308 and 1e+308 are too far apart"),
    (events(([-math.inf, 0], [0, 1]), [4]), ValueError, "recording: the times -inf and 0.0 are too far apart"),
    (events((np.array([2**63], np.uint64), [0]), [4]), ValueError, "times: expected numbers below 2^63, got 922337203"),
    (events(([0.0], [1]), [4], window=(1, 1)), ValueError, "window: expected (start, stop) with start < stop, got (1"),
    *((events(([0.0], [1]), [4], window=window), ValueError, "window: expected (start, stop) with start < stop, got ")
      for window in ((None, 1), ("a", "b"), (0, math.inf), (-math.inf, math.inf), (0, nan), (0, (1, 2)), 5)),
    (events({"t": [0, 1], "x": [1.0, 2.7]}, [4]), ValueError, "x: expected whole numbers, got 2.7"),
    (events(([0.0], ["a"]), [4]), TypeError, "neurons: expected numbers, got <U1"),
    (events(([0.0], [4]), [4]), ValueError, "neurons: expected addresses in 0..3, got 4..4"),
    (events(([[0.0]], [1]), [4]), ValueError, "times: expected a 1-d array"),
    (events(torch.zeros(3), [4]), TypeError, "recording: expected a structured array, a mapping with t, x, y, p"),
    (events({"t": [0], "x": [0]}, [1, 2, 3, 4]), ValueError, "shape: expected [neurons], [p, x] or [p, y, x] for"),
    (events(([0], [0]), []), ValueError, "shape: expected the sizes of the features, such as (2, 34, 34), got []"),
    (events(([0], [0]), [-1]), ValueError, "shape: expected the sizes of the features"),
    (events(([0], [0]), 4), ValueError, "shape: expected the sizes of the features, such as (2, 34, 34), got 4"),
    (events(([0], [0]), [4.0]), ValueError, "shape: expected the sizes of the features"),
    (events({"t": [0], "x": [0], "y": [0], "p": [2]}, [2, 4, 4]), ValueError, "p: expected addresses in 0..1"),
    (events({"t": [0], "x": [0], "y": [0], "p": [-1]}, [3, 4, 4]), ValueError, "p: expected addresses in 0..2"),
    # long windows
    *((call, ValueError, "T: expected an int from 1 to 255 with timing='window'") for call in (
        lambda: te.SpikeTrain.from_counts(torch.ones(1, 1), 256), lambda: train(256, 1, 2).count_bytes,
        lambda: tnn.Linear(2, 3, timing="window")(train(256, 1, 2)),
        lambda: tnn.Linear(2, 3, timing="window")(te.ConstantInput(torch.ones(1, 2), 256)),
        lambda: tnn.Linear(2, 3, timing="window", norm=True)(train(256, 2, 2)),
        lambda: tnn.AvgPool2d(2, timing="window")(train(256, 1, 1, 2, 2)),
    )),
    # layers of networks
    (lambda: tnn.Linear(4, 3)(dyadic(2, 4)), TypeError, "tnn.Encoder"),
    (lambda: tnn.Encoder(65536), ValueError, "T: expected an int from 1 to 65535, got 65536"),
    (lambda: tnn.Encoder(8, mode="rate"), ValueError, "zero_expand"),
    (lambda: tnn.Encoder(8)(torch.zeros(2, 4, dtype=torch.uint8)), TypeError, "floating-point"),
    (lambda: tnn.Encoder(8)([torch.rand(9, 2)]), TypeError, "x: expected a floating-point tensor"),
    (lambda: tnn.Encoder(8, "events")(torch.ones(2, 3)), TypeError, "takes a SpikeTrain, got a tensor of shape"),
    (lambda: tnn.Encoder(8)(ONES), TypeError, "Encoder with mode \"events\", this one has 'direct'"),
    (lambda: tnn.Encoder(4, "events")(ONES), ValueError, "T=4 takes a SpikeTrain of as many steps, got T=8"),
    (lambda: tnn.Linear(4, 3, threshold=torch.ones(2)), ValueError, "threshold"),
    (lambda: tnn.Conv2d(3, 4, 3, groups=2), ValueError, "groups"),
    (lambda: tnn.Readout(4, 2)(dyadic(2, 5)), ValueError, "4 features"),
    (lambda: tnn.Readout(4, 2)(te.ConstantInput(dyadic(2, 1, 2, 5), 8)), ValueError, "Flatten"),
    (lambda: tnn.Readout(4, 2)([1.0]), TypeError, "list"), (lambda: tnn.Flatten(0), ValueError, "batch"),
    (lambda: tnn.Flatten()([1]), TypeError, "list"), (lambda: tnn.Dropout(1.5), ValueError, "dropout probability"),
    *((lambda ends=ends: tnn.Flatten(*ends)(te.ConstantInput(dyadic(2, 3, 4), 8)), ValueError, "got shape [2, 3, 4]")
      for ends in ((3, -1), (-3, -1), (1, 3), (2, 1))),
    *((lambda ends=ends: freeze(nn.Sequential(tnn.Encoder(8), tnn.Flatten(*ends), tnn.Readout(4, 3)))(torch.rand(2, 4)),
       ValueError, "takes features with these dimensions, got shape [2, 4]") for ends in ((2, -1), (-2, -1), (1, 2))),
    *((lambda pool=pool: pool(ONES), ValueError, "Pool2d takes [B, C, H, W], got shape [2, 4]")
      for pool in (tnn.AvgPool2d(2), tnn.MaxPool2d(2), tnn.AdaptiveAvgPool2d(1), tnn.AvgPool2d(2, spiking=False))),
    (lambda: tnn.default_threshold(0), ValueError, "T: expected an int from 1 to 65535, got 0"),
    (lambda: tnn.default_threshold(8, "late"), ValueError, "timing: expected one of 'step', 'window', got 'late'"),
    (lambda: tnn.Linear(4, 3, norm=True)(te.ConstantInput(dyadic(1, 4), 8)), ValueError, "batch"),
    (lambda: tnn.AvgPool2d(2, v_init=nan), ValueError, "v_init: expected a finite"),
    (lambda: tnn.AvgPool2d(0), ValueError, "kernel_size: expected at least 1, got 0"),
    (lambda: tnn.MaxPool2d(2, 0.5), TypeError, "stride: expected an int or 2 ints, got 0.5"),
    (lambda: tnn.Linear(4, 4, neurons=False)(ONES, residual=ONES), ValueError, "residual"),
    *((lambda name=name, value=value: tnn.Linear(4, 4, neurons=False, timing="window", **{name: value}), ValueError,
       f"{name}: it is a setting of neurons, which needs neurons=True, got")
      for name, value in (("threshold", 1.0), ("threshold", torch.ones(4)), ("v_init", 0.5), ("T", 4), ("gate", "relu"),
                          ("gain", 0.5), ("gain", torch.ones(4)))),
    (lambda: tnn.Conv1d(4, 4, 3, neurons=False, leak=0.5), ValueError, "leak: it is a setting of neurons"),
    (lambda: te.cat([ONES, torch.ones(2, 4)]), TypeError, "got ['SpikeTrain', 'Tensor']: ConstantInput(x, T, gain=1"),
    (lambda: te.cat([nn.Parameter(torch.ones(2, 4)), tnn.currents_of(ONES)]), TypeError,
     "or ImpulseInput, got ['Parameter', 'Currents']: ConstantInput(x, T, gain=1 / T) makes one of a tensor [B, *"),
    *((lambda timing=timing: tnn.Linear(4, 4, neurons=False, timing=timing).potentials(ONES), ValueError,
       "potentials: with neurons=False there are none") for timing in te.checks.TIMINGS),
    (lambda: tnn.Linear(4, 4, norm=nn.BatchNorm1d(4)), TypeError, "norm: expected True or False"),
    (lambda: tnn.Linear(4, 4, norm=True, gamma="3"), TypeError, "gamma: expected None or a finite number"),
    *((lambda bits=bits: tnn.Readout(3, 2, weight_bits=bits), error, "weight_bits: expected None or an int from 2 to 8")
      for bits, error in ((1, ValueError), (9, ValueError), (4.0, TypeError), (True, TypeError))),
    (lambda: tnn.Residual(nn.Sequential(tnn.Linear(4, 4), tnn.Flatten())), TypeError, "got Flatten"),
    *((lambda paths=paths: tnn.Residual(*paths), TypeError, message) for paths, message in (
        ([nn.Sequential(tnn.Linear(4, 4, neurons=False), tnn.Neurons())], "that ends in one, got Neurons"),
        ([tnn.Linear(4, 4), tnn.Neurons()], "shortcut: expected Linear, Conv1d, Conv2d or"),
        ([tnn.Linear(4, 4, neurons=False)], "that ends in one, got Linear with neurons=False"),
    )),
    *((lambda shortcut=shortcut: tnn.Residual(tnn.Linear(4, 4), shortcut), TypeError,
       f"got {type(shortcut).__name__}: leave it out") for shortcut in (nn.Identity(), nn.Sequential())),
    *((lambda bn=bn: tnn.Linear(4, 4, **bn), ValueError, "a setting of the batch norm, which needs norm=True, got")
      for bn in ({"gamma": 3.0}, {"eps": 0.1, "norm": False}, {"momentum": 0.5})),
    (lambda: tnn.Residual(tnn.Linear(4, 4))(te.ConstantInput(dyadic(2, 4), 8)), TypeError, "residual"),
    (lambda: tnn.Residual(tnn.Linear(4, 3))(ONES), ValueError, "residual"),
    *((lambda ways=ways: tnn.Residual(*(tnn.Linear(4, 3, timing=way) for way in ways))(ONES), ValueError,
       "timing: both paths need the same") for ways in (("window", "step"), ("step", "window"))),
    (lambda: freeze(nn.Sequential(tnn.Linear(4, 4), tnn.Readout(4, 2))), ValueError, "T: default thresholds depend"),
])  # fmt: skip
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=re.escape(message)) as caught:
        call()
    assert ("NoneType" in str(caught.value)) == ("NoneType" in message)  # it says what the value was
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [name for name in tnn.__all__ if hasattr(nn, name) and name != "SyncBatchNorm"])
def test_a_layer_of_torch_names_ours(name):
    needed = sum(p.default is p.empty for p in inspect.signature(getattr(nn, name)).parameters.values())
    with pytest.raises((TypeError, AttributeError), match=rf"tandem_snn\.nn\.{name}\b"):
        getattr(nn, name)(*[1] * needed)(train(8, 1, 1, 1, 1))


@pytest.mark.kernels
@pytest.mark.parametrize(("op", "arguments", "position", "value"), [
    ("linear_if", (PLANES, 9, W), 0, 8), ("if_scan", (torch.zeros(8),), 0, 8), ("constant_if", (dyadic(3, 7), 0), 0, 8),
    ("conv_if", (IMAGE.planes, 8, KERNEL, [0, 1], [1, 1], [1, 1], 1), 0, 8),
    *(("linear_if", (PLANES, 8, W), position, value) for position, value in (
        (7, torch.ones(4)), (7, torch.ones(5, dtype=torch.float64)), (10, dyadic(8, 3, 4)),
        (10, train(8, 3, 4).planes), (12, torch.ones(4)), (0, 0), (1, 0.0), (1, nan), (2, 0.0), (2, 2.0), (3, "none"),
        (4, "none"), (9, torch.ones(4)), (9, torch.ones(3, dtype=torch.int)),
    )),
])  # fmt: skip
def test_ops_have_their_own_checks(op, arguments, position, value):
    """C++ is the second line: no bad call of a bare op, nor one with a bad argument of neurons, reaches a kernel."""
    neuron = [*NEURON[:position], value, *NEURON[position + 1 :]]
    with pytest.raises(RuntimeError, match="tandem"):
        getattr(torch.ops.tandem, op)(*arguments, *neuron)
