"""What people try without reading: help(), completion, trains in NumPy's and torch's hands."""

import inspect
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import train
from torch import nn

import tandem_ext as te
import tandem_snn
import tandem_snn.nn as tnn
from tandem_ext.functional.settings import SETTINGS
from tandem_snn.nn.options import NeuronOptions

ROOT = Path(__file__).parents[2]
TRAIN = train(9, 6, 2, 5)


@pytest.mark.parametrize("layer", [tnn.Linear, tnn.Conv1d, tnn.Conv2d])
def test_help_shows_every_argument(layer):
    shown = inspect.signature(layer).parameters
    assert set(NeuronOptions.__annotations__) <= set(shown)
    assert not any(p.kind is p.VAR_KEYWORD for p in shown.values())
    with pytest.raises(TypeError, match=r"tresh: .* its neurons have norm"):
        layer(*([3] * sum(p.default is p.empty for p in shown.values())), tresh=1)


def test_a_setting_is_declared_once():
    """Functions and layers show, accept and check what one declaration says."""
    shown = inspect.signature(te.functional.if_scan).parameters
    layer = inspect.signature(tnn.Linear).parameters
    for name, setting in SETTINGS.items():
        assert shown[name].default == setting.default
        of_calls, of_layers = ("residual", "steps", "return_v"), ("threshold", "gate")  # with defaults of their own
        assert name in (*of_calls, *of_layers) or layer[name] == shown[name]
    assert (layer["threshold"].default, layer["gate"].default) == (None, "clip")
    for call in (lambda **o: te.functional.if_scan(torch.ones(8, 1, 3), **o), lambda **o: tnn.Linear(3, 2, **o)):
        with pytest.raises(ValueError, match=r"leak: expected a float in \(0, 1\], where 1 means no leak, got 1.5"):
            call(leak=1.5)
        with pytest.raises(ValueError, match="leak: with timing='window' neurons do not leak, expected 1"):
            call(leak=0.5, timing="window")


def test_type_checkers_accept_what_is_right_and_nothing_else():
    """mypy reports a wrong line as an error, and a line that should be wrong as an unused comment."""
    pytest.importorskip("mypy")
    command = [sys.executable, "-m", "mypy", "tests/project/typed_program.py"]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (found.returncode, found.stderr) == (0, ""), found.stdout


def test_numpy_gets_the_spikes():
    spikes = np.asarray(TRAIN)
    assert (spikes.dtype, spikes.shape) == (np.uint8, (9, 6, 2, 5))
    assert np.array_equal(spikes, TRAIN.to_dense().numpy())
    assert np.asarray(TRAIN, dtype=bool).dtype == bool
    with pytest.raises(ValueError, match="copy: "):
        np.array(TRAIN, copy=False)


@pytest.mark.parametrize(("name", "said"), [
    ("numpy", r"numpy.asarray\(train\)"), ("cpu", r'to\("cpu"\)'), ("sum", "counts is the sum"), ("size", "shape is"),
    ("dtype", "counts.dtype"), ("flatten", "tandem_snn.nn.Flatten"), ("plot", "tandem_snn.plots.raster"),
    ("mT", "T is the number of time steps"), ("permute", r"to_dense\(\) is the spikes"), ("mean", "counts their"),
])  # fmt: skip
def test_an_attribute_of_tensors_says_what_to_use(name, said):
    with pytest.raises(AttributeError, match=rf"'SpikeTrain' object has no attribute '{name}': .*{said}"):
        getattr(TRAIN, name)
    assert not hasattr(TRAIN, name)
    with pytest.raises(AttributeError, match=r"'SpikeTrain' object has no attribute 'spam'$"):
        TRAIN.spam  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'mean': x is its tensor"):
        te.ConstantInput(torch.ones(1, 2), 8).mean  # noqa: B018


@pytest.mark.parametrize("module", [te, tandem_snn, tnn])
def test_completion_offers_what_is_public(module):
    assert set(dir(module)) <= {*module.__all__, "__version__"}
    assert "Linear" in dir(module) or "SpikeTrain" in dir(module)


def images_net():
    """Its input, and a network with step and window timing."""
    options: tnn.NeuronOptions = {"norm": True}
    pool = tnn.AvgPool2d(2, timing="window")
    layers = tnn.Conv2d(1, 4, 3, **options), pool, tnn.Flatten(), tnn.Linear(16, 5), tnn.Readout(5, 3)
    return torch.rand(2, 1, 6, 6), nn.Sequential(tnn.Encoder(8), *layers).eval()


def add_graph(net, x, folder):
    writer = pytest.importorskip("torch.utils.tensorboard").SummaryWriter(folder)
    writer.add_graph(net, x)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize(("call", "instead"), [
    (lambda net, x, folder: torch.jit.trace(net, x), "to_ann"), (add_graph, "to_ann"),
    (lambda net, x, folder: torch.jit.script(net), "to_ann"),
    (lambda net, x, folder: torch.onnx.export(net, (x,), folder / "net.onnx", dynamo=False), "to_onnx"),
])  # fmt: skip
def test_recorders_of_torchs_operators_say_what_to_do(call, instead, frozen, tmp_path):
    x, net = images_net()
    with pytest.raises(NotImplementedError, match=rf"knows no spiking layers: .*tandem_snn\.{instead}"):
        call(tandem_snn.freeze(net) if frozen else net, x, tmp_path)
    twin = torch.jit.trace(tandem_snn.to_ann(net), x)
    assert twin(x).shape == net(x).shape


def test_export_to_onnx_by_torch_export_says_what_to_do(monkeypatch):
    x, net = images_net()
    program = torch.export.export(net, (x,))
    monkeypatch.setattr(torch.onnx, "is_in_onnx_export", lambda: True)  # torch's own needs onnxscript
    for call in (lambda: torch.export.export(net, (x,)), program.run_decompositions):
        with pytest.raises(NotImplementedError, match=r"use tandem_snn\.to_onnx\(net, path, x\)"):
            call()
