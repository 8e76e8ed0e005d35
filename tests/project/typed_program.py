"""A program for type checkers, see test_habits.py. Lines with ``type: ignore`` are wrong: each must be an error."""

import torch
from torch import nn

import tandem_ext as te
import tandem_snn as ts
import tandem_snn.nn as tnn

options: tnn.NeuronOptions = {"norm": True, "timing": "window", "gate": "relu", "gain": None}
net = nn.Sequential(
    tnn.Encoder(T=8, mode="direct"),
    tnn.Conv2d(1, 8, 3, stride=2, **options),
    tnn.Conv2d(8, 8, 3, padding="same", **options),
    tnn.AvgPool2d(2, timing="window"),
    tnn.Flatten(),
    tnn.Linear(72, 16, v_init=torch.zeros(16), weight_bits=4),
    tnn.Readout(16, 10),
)
frozen: ts.FrozenNetwork = ts.freeze(net, weight_bits=8)
answer: torch.Tensor = frozen.step(torch.rand(1, 1, 15, 15))
neuron: te.functional.Neuron = {"timing": "window", "gate": "clip", "return_v": True}
train: te.SpikeTrain = te.SpikeTrain.from_counts(torch.ones(1, 4), T=8)
fired = te.functional.linear_if(train, torch.rand(3, 4), **neuron)
snn: nn.Module = ts.convert(nn.Linear(4, 3), T=8, timing="step", mode="zero_expand")

tnn.Linear(4, 3, timing="windows")  # type: ignore[arg-type]
tnn.Linear(4, 3, gate="sigmoid")  # type: ignore[arg-type]
tnn.Linear(4, 3, gain="threshold")  # type: ignore[arg-type]
tnn.Linear(4, 3, treshold=1.0)  # type: ignore[call-arg]
tnn.AvgPool2d(2, timing="late")  # type: ignore[arg-type]
tnn.Encoder(8, mode="events only")  # type: ignore[arg-type]
ts.ann.Encoder(8, mode="events only")  # type: ignore[arg-type]
tnn.default_threshold(8, "late")  # type: ignore[arg-type]
ts.convert(nn.Linear(4, 3), T=8, timing="windows")  # type: ignore[arg-type]
ts.convert(nn.Linear(4, 3), T=8, mode="rate")  # type: ignore[arg-type]
ts.from_nir("net.nir", mode="rate")  # type: ignore[arg-type]
te.functional.if_scan(torch.rand(4, 2, 3), timing="windows")  # type: ignore[arg-type]
te.functional.couple(train, torch.rand(1, 4), gate="sigmoid")  # type: ignore[arg-type]
te.SpikeTrain(torch.zeros(1, 1, 4, dtype=torch.uint8), 8, timing="windows")  # type: ignore[arg-type]
misspelt: tnn.NeuronOptions = {"timing": "windows"}  # type: ignore[typeddict-item]
unknown: tnn.NeuronOptions = {"tresh": 1.0}  # type: ignore[typeddict-unknown-key]
