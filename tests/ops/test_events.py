"""Spike trains from events, as cameras and cochleas record them, and from frames of counts: made on the host."""

import numpy as np
import pytest
import torch
from cases import assert_same, recording

import tandem_ext as te


def test_trains_of_counts_and_events_take_one_gain_per_channel():
    for made in (
        lambda gain: te.SpikeTrain.from_counts(torch.ones(3, 2, 5, dtype=torch.int), 4, gain),
        lambda gain: te.SpikeTrain.from_events(([0, 1], [0, 3]), [2, 2], 4, gain=gain),
    ):
        assert torch.equal(made(torch.tensor([0.5, 2.0])).gain, torch.tensor([0.5, 2.0]))
        with pytest.raises(ValueError, match=r"gain: expected shape \[2\], one value per channel, got \[3\]"):
            made(torch.ones(3))


@pytest.mark.parametrize("T", [1, 7, 8, 20])
def test_events_are_binned_by_time(T):
    events = recording(300, (5, 6, 2), until=1000)
    x = te.SpikeTrain.from_events(events, (2, 6, 5), T, window=(100, 900))
    expected = torch.zeros(T, 1, 2, 6, 5)
    for event in events:
        if 100 <= event["t"] < 900:
            expected[(event["t"] - 100) * T // 800, 0, event["p"], event["y"], event["x"]] = 1
    assert torch.equal(x.to_dense(), expected)
    assert (x.shape, x.T) == ((1, 2, 6, 5), T)


@pytest.mark.parametrize(("times", "neurons", "options", "spikes"), [
    ([10, 19, 20, 30], [0, 1, 2, 3], {}, [[1, 1, 0, 0], [0, 0, 1, 1]]),  # by default it ends with the last event
    ([-1, 0, 9, 10], [0, 1, 2, 3], {"window": (0, 10)}, [[0, 1, 0, 0], [0, 0, 1, 0]]),  # not its end
    ([0, 0, 1, 1], [3, 3, 3, 3], {}, [[0, 0, 0, 1], [0, 0, 0, 1]]),  # many events in a frame are one spike
])  # fmt: skip
def test_windows(times, neurons, options, spikes):
    x = te.SpikeTrain.from_events((times, neurons), [4], T=2, **options)
    assert x.to_dense(torch.int)[:, 0].tolist() == spikes


def test_frames_of_decimal_times_begin_at_the_edges_of_linspace():
    """A product with T, rounded, would put some of the events at an edge into the frame before it, or after."""
    for start, stop, T in [(0.1 * a, 0.1 * (a + n), n) for a in range(30) for n in range(1, 60)]:
        times = np.append(np.linspace(start, stop, T + 1)[:-1], np.inf)
        x = te.SpikeTrain.from_events((times, np.arange(T + 1)), [T + 1], T, window=(start, stop))
        assert torch.equal(x.to_dense()[:, 0, :T], torch.eye(T))
        assert not x.counts[0, T]
    for times in [7.0], [7.0, 7.0], [1e300]:
        assert te.SpikeTrain.from_events((times, [0] * len(times)), [1], 3).to_dense().flatten().tolist() == [1, 0, 0]


def test_events_in_other_forms_of_narrow_types_and_none():
    events = recording(200, (5, 6, 2))
    expected = te.SpikeTrain.from_events(events, (2, 6, 5), 8)
    fields = {name: torch.from_numpy(events[name].copy()) for name in "txyp"}
    flat = events["p"] * 30 + events["y"] * 5 + events["x"]
    for same in (
        fields, fields | {"p": torch.where(fields["p"] == 0, -1, 1)}, fields | {"p": fields["p"].bool()},
        np.random.default_rng(1).permutation(events), (events["t"], flat),
    ):  # fmt: skip
        assert_same(te.SpikeTrain.from_events(same, (2, 6, 5), 8), expected)
    merged = te.SpikeTrain.from_events(events, (1, 6, 5), 8)
    assert torch.equal(merged.to_dense(), expected.to_dense().amax(2, keepdim=True))
    assert te.SpikeTrain.from_events({"t": [0, 1], "x": [3, 4]}, [700], 4).counts.sum() == 2  # of a cochlea
    times = np.array([0, 2**31 - 1], dtype=np.int32)
    assert te.SpikeTrain.from_events((times, [0, 0]), [1], T=200).to_dense()[[0, 199], 0, 0].tolist() == [1, 1]
    silent = te.SpikeTrain.from_events(([], []), [4], 8)
    assert silent.counts.sum() == 0
    assert silent.gain == 1.0
    assert te.SpikeTrain.from_events(([], []), [4], 8, gain=0.5).gain == 0.5
    assert te.SpikeTrain.from_events(([], []), [2, 0], 8).shape == (1, 2, 0)


def test_counts_in_frames_are_clipped_or_spread():
    counts = torch.randint(0, 5, (3, 2, 7), dtype=torch.int16, generator=torch.Generator().manual_seed(0))
    clipped = te.SpikeTrain.from_frames(counts)
    assert torch.equal(clipped.to_dense(), counts.clamp(max=1).float())
    for substeps in 2, 4, 60:
        spread = te.SpikeTrain.from_frames(counts.numpy().astype(np.uint16), substeps=substeps)
        assert len(counts) * substeps == spread.T
        spikes = spread.to_dense().unflatten(0, (3, substeps))
        assert torch.equal(spikes.sum(1), counts.clamp(max=substeps).float())
    many = torch.tensor([[[30000, 50000]]])
    assert te.SpikeTrain.from_frames(many, substeps=65535).counts.tolist() == [[30000, 50000]]
    three = te.SpikeTrain.from_frames(torch.tensor([[[3]]]), substeps=6)
    assert three.to_dense().flatten().tolist() == [0, 1, 0, 1, 0, 1]  # spaced evenly
    batch = te.SpikeTrain.from_frames(counts.transpose(0, 1).double(), batch_first=True, gain=0.5)
    assert torch.equal(batch.planes, clipped.planes)
    assert batch.gain == 0.5
