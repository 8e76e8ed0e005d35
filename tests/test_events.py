"""Spike trains from events, as cameras and cochleas record them. All of it happens on the host."""

import math
import re

import numpy as np
import pytest
import torch
from cases import assert_same, recording

import tandem_ext as te


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


def test_events_in_other_forms():
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


def test_narrow_time_types_do_not_overflow():
    times = np.array([0, 2**31 - 1], dtype=np.int32)
    assert te.SpikeTrain.from_events((times, [0, 0]), [1], T=200).to_dense()[[0, 199], 0, 0].tolist() == [1, 1]


def test_no_events():
    silent = te.SpikeTrain.from_events(([], []), [4], 8)
    assert silent.counts.sum() == 0
    assert silent.gain == 1.0
    assert te.SpikeTrain.from_events(([], []), [4], 8, gain=0.5).gain == 0.5
    assert te.SpikeTrain.from_events(([], []), [2, 0], 8).shape == (1, 2, 0)


@pytest.mark.parametrize(("events", "shape", "options", "error", "match"), [
    ({"t": [0]}, [4], {}, ValueError, "recording: features (4,) need the fields t, x; missing: {'x'}"),
    ({"x": [0]}, [4], {}, ValueError, "missing: {'t'}"),
    ({"t": [0], "x": [0]}, [2, 4], {}, ValueError, "features (2, 4) need the fields t, p, x; missing: {'p'}"),
    ({"t": [0], "x": [4]}, [4], {}, ValueError, "x: expected addresses in 0..3, got 4..4"),
    ({"t": [0], "x": [-1]}, [4], {}, ValueError, "x: expected addresses in 0..3, got -1..-1"),
    ({"t": [0, 1], "x": [1]}, [4], {}, ValueError, "x: expected 2 values, as many as there are times, got 1"),
    ({"t": [[0]], "x": [1]}, [4], {}, ValueError, "t: expected a 1-d array, one value per event, got shape (1, 1)"),
    (([math.nan], [1]), [4], {}, ValueError, "recording: a time is NaN"),
    (([0.0], [1]), [4], {"window": (1, 1)}, ValueError, "window: expected (start, stop) with start < stop, got (1, 1)"),
    ({"t": [0, 1], "x": [1.0, 2.7]}, [4], {}, ValueError, "x: expected whole numbers, got 2.7"),
    (([0.0], ["a"]), [4], {}, TypeError, "neurons: expected numbers, got <U1"),
    (([0.0], [4]), [4], {}, ValueError, "neurons: expected addresses in 0..3, got 4..4"),
    (([[0.0]], [1]), [4], {}, ValueError, "times: expected a 1-d array"),
    (torch.zeros(3), [4], {}, TypeError, "recording: expected a structured array, a mapping with t, x, y, p"),
    ({"t": [0], "x": [0]}, [1, 2, 3, 4], {}, ValueError, "shape: expected [neurons], [p, x] or [p, y, x] for events"),
    (([0], [0]), [], {}, ValueError, "shape: expected the sizes of the features, such as (2, 34, 34), got ()"),
    (([0], [0]), [-1], {}, ValueError, "shape: expected the sizes of the features"),
    (([0], [0]), [4.0], {}, ValueError, "shape: expected the sizes of the features"),
    ({"t": [0], "x": [0], "y": [0], "p": [2]}, [2, 4, 4], {}, ValueError, "p: expected addresses in 0..1"),
    ({"t": [0], "x": [0], "y": [0], "p": [-1]}, [3, 4, 4], {}, ValueError, "p: expected addresses in 0..2"),
])  # fmt: skip
def test_bad_events(events, shape, options, error, match):
    with pytest.raises(error, match=re.escape(match)):
        te.SpikeTrain.from_events(events, shape, 8, **options)
