"""What people try without reading: help(), completion, trains in NumPy's and torch's hands, recordings and frames."""

import inspect

import numpy as np
import pytest
import torch

import tandem_ext as te
import tandem_snn
import tandem_snn.nn as tnn
from tandem_ext.functional.settings import SETTINGS
from tandem_snn.nn.options import NeuronOptions


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
        assert name in ("residual", "steps", "return_v") or layer[name] == shown[name]
    for call in (lambda **o: te.functional.if_scan(torch.ones(8, 1, 3), **o), lambda **o: tnn.Linear(3, 2, **o)):
        with pytest.raises(ValueError, match=r"leak: expected a float in \(0, 1\], where 1 means no leak, got 1.5"):
            call(leak=1.5)
        with pytest.raises(ValueError, match="leak: with timing='window' neurons do not leak, expected 1"):
            call(leak=0.5, timing="window")


def test_a_name_that_is_gone_says_so_and_another_is_missing():
    for name in tandem_snn._MOVED:
        with pytest.raises(ImportError, match=rf"^tandem_snn\.{name} is gone since 0\.2\.0: [^\n]+$"):
            getattr(tandem_snn, name)
    with pytest.raises(AttributeError, match="has no attribute 'freese'"):
        getattr(tandem_snn, "freese")  # noqa: B009


@pytest.fixture
def train():
    generator = torch.Generator().manual_seed(0)
    return te.SpikeTrain.from_dense((torch.rand(9, 6, 2, 5, generator=generator) < 0.3).float())


def test_numpy_gets_the_spikes(train):
    spikes = np.asarray(train)
    assert (spikes.dtype, spikes.shape) == (np.uint8, (9, 6, 2, 5))
    assert np.array_equal(spikes, train.to_dense().numpy())
    assert np.asarray(train, dtype=bool).dtype == bool
    with pytest.raises(ValueError, match="copy: "):
        np.array(train, copy=False)


@pytest.mark.parametrize(("name", "said"), [
    ("numpy", r"numpy.asarray\(train\)"), ("cpu", r'to\("cpu"\)'), ("sum", "counts is the sum"), ("size", "shape is"),
    ("dtype", "counts.dtype"), ("flatten", "tandem_snn.nn.Flatten"), ("plot", "tandem_snn.plots.raster"),
    ("mT", "T is the number of time steps"), ("permute", r"to_dense\(\) is the spikes"), ("mean", "counts their"),
])  # fmt: skip
def test_an_attribute_of_tensors_says_what_to_use(train, name, said):
    with pytest.raises(AttributeError, match=rf"'SpikeTrain' object has no attribute '{name}': .*{said}"):
        getattr(train, name)
    assert not hasattr(train, name)
    with pytest.raises(AttributeError, match=r"'SpikeTrain' object has no attribute 'spam'$"):
        train.spam  # noqa: B018
    with pytest.raises(AttributeError, match="no attribute 'mean': x is its tensor"):
        te.ConstantInput(torch.ones(1, 2), 8).mean  # noqa: B018


@pytest.mark.parametrize(("call", "said"), [
    (lambda x: torch.stack([x, x]), r"torch's stack takes no SpikeTrain: tandem_ext.cat"),
    (lambda x: torch.nn.Linear(5, 3)(x), r"torch's linear takes no SpikeTrain: .*tandem_snn.nn; to_dense\(\)"),
    (lambda x: torch.nn.Conv2d(5, 3, 3)(x), "torch's conv2d takes no SpikeTrain"),
    (lambda x: torch.relu(x), "torch's relu takes no SpikeTrain"),
    (lambda x: torch.nn.Flatten()(x), "Flatten"),
])  # fmt: skip
def test_functions_of_torch_say_what_to_use(train, call, said):
    with pytest.raises((TypeError, AttributeError), match=said):
        call(train)


@pytest.mark.parametrize("module", [te, tandem_snn, tnn])
def test_completion_offers_what_is_public(module):
    assert set(dir(module)) <= {*module.__all__, "__version__"}
    assert "Linear" in dir(module) or "SpikeTrain" in dir(module)


def test_counts_in_frames_are_clipped_or_spread():
    counts = torch.randint(0, 5, (3, 2, 7), dtype=torch.int16, generator=torch.Generator().manual_seed(0))
    clipped = te.SpikeTrain.from_frames(counts)
    assert torch.equal(clipped.to_dense(), counts.clamp(max=1).float())
    for substeps in 2, 4, 60:
        spread = te.SpikeTrain.from_frames(counts.numpy().astype(np.uint16), substeps=substeps)
        assert len(counts) * substeps == spread.T
        spikes = spread.to_dense().unflatten(0, (3, substeps))
        assert torch.equal(spikes.sum(1), counts.clamp(max=substeps).float())
    three = te.SpikeTrain.from_frames(torch.tensor([[[3]]]), substeps=6)
    assert three.to_dense().flatten().tolist() == [0, 1, 0, 1, 0, 1]  # spaced evenly
    batch = te.SpikeTrain.from_frames(counts.transpose(0, 1).double(), batch_first=True, gain=0.5)
    assert torch.equal(batch.planes, clipped.planes)
    assert batch.gain == 0.5
