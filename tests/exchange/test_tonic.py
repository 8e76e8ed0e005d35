"""tonic as it is: its data sets' files, transforms, caches, slices and collation, into trains."""

import numpy as np
import pytest
import torch
from cases import recording
from torch.utils.data import DataLoader

import tandem_ext as te
from tandem_snn.tonic import bin_events, from_tonic

tonic = pytest.importorskip("tonic")
h5py = pytest.importorskip("h5py")

SENSOR = (12, 9, 2)


class Recordings:
    """As tonic's data sets are: events and classes by index, with a transform."""

    sensor_size = SENSOR
    classes = ("a", "b", "c")

    def __init__(self, transform=None):
        self.transform = transform or (lambda events: events)
        self.read = 0

    def __len__(self):
        return 6

    def __getitem__(self, index):
        if index >= len(self):
            raise IndexError(index)
        self.read += 1
        return self.transform(recording(200, SENSOR, index)), index % 3


def expected(T=8):
    return te.cat([te.SpikeTrain.from_events(recording(200, SENSOR, i), SENSOR[::-1], T) for i in range(6)])


def batch(dataset, **options):
    return next(iter(DataLoader(dataset, batch_size=6, **options)))


@pytest.mark.parametrize("workers", [0, 1])
def test_events_become_batches_of_trains(workers):
    trains, targets = batch(from_tonic(Recordings(), 20), num_workers=workers)
    assert torch.equal(trains.planes, expected(20).planes)
    assert targets.tolist() == [0, 1, 2, 0, 1, 2]


@pytest.mark.parametrize("size", [(34, 34), (17, 10)])
def test_every_event_is_in_its_frame(size):
    events = recording(500, (34, 34, 2))
    expected = torch.zeros(11, 2, *size)
    first, last = events["t"].min(), events["t"].max()
    for i in range(500):
        share = (events["t"][i] - first) / (last - first)
        y, x = events["y"][i] * size[0] // 34, events["x"][i] * size[1] // 34
        expected[min(int(share * 11 + 1e-9), 10), events["p"][i], y, x] = 1
    for some, spikes in (events, expected), (events[:0], torch.zeros_like(expected)):
        by_name = {name: some[name] for name in some.dtype.names}
        assert torch.equal(bin_events(by_name, (2, 34, 34), (2, *size), 11).to_dense()[:, 0], spikes)


@pytest.mark.parametrize("size", [None, 2])
def test_times_may_be_fractions(size):
    """A recording in seconds is not cut to whole ones."""
    events = {"t": [0.0, 0.3, 0.6, 0.9], "x": [0, 1, 2, 3], "p": [0, 0, 0, 0]}
    ((train, _),) = from_tonic([(events, 0)], 4, sensor_size=(4, 1, 1), size=size)
    expected = torch.eye(4) if size is None else torch.eye(2).repeat_interleave(2, 0)
    assert torch.equal(train.to_dense()[:, 0], expected)


def test_size_window_and_sensors():
    small = from_tonic(Recordings(), 4, size=3)
    assert (small.shape, small[0][0].shape) == ((2, 3, 3), (1, 2, 3, 3))
    window = from_tonic(Recordings(), 4, window=(0, 1e6))[0][0]
    assert window.to_dense()[1:].sum() == 0
    column = from_tonic(Recordings(lambda events: events[:, None]), 8)  # as those of ASL-DVS are
    assert torch.equal(batch(column)[0].planes, expected().planes)
    assert repr(from_tonic(Recordings(), 4)) == "TrainDataset(6 trains [2, 9, 12], T=4, of Recordings)"
    events = {"t": [0, 5, 9], "x": [33, 1, 2], "p": [1, 0, 1]}
    for size, shape in ((700, 1, 1), (700,)), ((700, 1, 2), (2, 700)):
        assert from_tonic([(events, 0)], 4, sensor_size=size)[0][0].shape == (1, *shape)


@pytest.mark.parametrize("of", ["events", "frames", "trains"])
@pytest.mark.parametrize("cache", ["Memory", "Disk"])
def test_caches_below_and_above(of, cache, tmp_path):
    def cached(dataset):
        folder = [str(tmp_path / "cache")] if cache == "Disk" else []
        return getattr(tonic, f"{cache}CachedDataset")(dataset, *folder)

    frames = tonic.transforms.ToFrame(SENSOR, n_time_bins=8)
    recordings = Recordings(frames if of == "frames" else None)
    kept = cached(from_tonic(recordings, 8) if of == "trains" else recordings)
    trains = from_tonic(kept, 8)
    once, again = batch(trains)[0], batch(trains)[0]
    assert recordings.read == 6
    assert torch.equal(once.planes, again.planes)
    binned = [frames(recording(200, SENSOR, i)) for i in range(6)]  # by tonic, whose edges lie elsewhere
    right = te.SpikeTrain.from_frames(np.stack(binned), batch_first=True) if of == "frames" else expected()
    assert torch.equal(once.planes, right.planes)


def test_slices_and_frames_of_equal_numbers_of_events():
    sliced = tonic.SlicedDataset(Recordings(), tonic.slicers.SliceByEventCount(50))
    trains = from_tonic(sliced, 5)
    assert len(trains) == 24
    assert torch.equal(trains[1][0].planes, te.SpikeTrain.from_events(sliced[1][0], SENSOR[::-1], 5).planes)
    trains = from_tonic(Recordings(tonic.transforms.ToFrame(SENSOR, n_event_bins=4)), 8)
    assert all(train.T == 8 for train, _ in trains)
    assert {int(train.counts.sum()) > 0 for train, _ in trains} == {True}


def test_frames_are_clipped_or_spread_over_sub_steps_and_may_be_padded():
    recordings = Recordings(tonic.transforms.ToFrame(SENSOR, n_time_bins=4))
    counts = torch.from_numpy(np.stack([recordings[i][0] for i in range(6)], 1)).float()
    assert counts.max() > 2
    clipped, _ = batch(from_tonic(recordings, 4))
    assert torch.equal(clipped.to_dense(), counts.clamp(max=1))
    spread, _ = batch(from_tonic(recordings, 12))
    assert torch.equal(spread.to_dense().unflatten(0, (4, 3)).sum(1), counts.clamp(max=3))
    flipped = Recordings(lambda events: np.flip(recordings.transform(events), 3))  # a view with a negative stride
    assert torch.equal(batch(from_tonic(flipped, 4))[0].to_dense(), clipped.to_dense().flip(4))
    assert torch.equal(te.SpikeTrain.from_frames(counts.numpy()[::-1]).to_dense(), clipped.to_dense().flip(0))
    recordings = Recordings(tonic.transforms.ToFrame(SENSOR, event_count=45, include_incomplete=True))
    for first in True, False:
        frames, targets = batch(recordings, collate_fn=tonic.collation.PadTensors(batch_first=first))
        trains = te.SpikeTrain.from_frames(frames, batch_first=first)
        assert (trains.T, trains.shape, len(targets)) == (5, (6, 2, 9, 12), 6)
        assert torch.equal(trains.to_dense()[:, 3], torch.from_numpy(recordings[3][0]).clamp(max=1).float())


PLAIN, FRAMES = list(Recordings()), Recordings(tonic.transforms.ToFrame(SENSOR, n_time_bins=5))


@pytest.mark.parametrize(("make", "said"), [
    (lambda: from_tonic(PLAIN), r"sensor_size: not known for list: give \(x, y, polarities\)"),
    *((lambda size=size: from_tonic(PLAIN, sensor_size=size), "sensor_size: expected") for size in ((9, 2), 9)),
    (lambda: from_tonic(iter(PLAIN)), "dataset: expected one with len"),
    (lambda: from_tonic(Recordings(), 8, size=10), "size: expected 1 to 9"),
    *((lambda window=window: from_tonic(Recordings(), 8, window=window), "window: expected")
      for window in ((10, 0), 10, (10,))),
    (lambda: from_tonic(PLAIN, sensor_size=(9, 12, 2))[1], "x: expected addresses in 0..8"),
    (lambda: from_tonic(FRAMES, 8)[1], "T: sample 1 has 5 frames, and T=8 is not a multiple of that"),
    (lambda: from_tonic(FRAMES, 5, size=3)[1], "size: frames cannot be resized"),
    (lambda: from_tonic(FRAMES, 5, sensor_size=(9, 12, 2))[1], r"expected frames \[T, \*\[2, 12, 9\]\]"),
    (lambda: from_tonic(Recordings(lambda events: "x"), 5)[0], "got str as sample 0"),
])  # fmt: skip
def test_what_does_not_fit_is_said(make, said):
    with pytest.raises((TypeError, ValueError), match=said):
        make()


@pytest.mark.parametrize("name", ["SHD", "SSC"])
def test_heidelberg_files(name, tmp_path):
    folder = tmp_path / name
    folder.mkdir()
    (folder / f"{name.lower()}_train.h5.zip").touch()
    draw = np.random.default_rng(0)
    times = np.sort(draw.random((3, 300)), 1).astype(np.float16)
    units = draw.integers(700, size=(3, 300)).astype(np.uint16)
    with h5py.File(folder / f"{name.lower()}_train.h5", "w") as file:
        for key, values in ("times", times), ("units", units):
            file.create_dataset(f"spikes/{key}", shape=3, dtype=h5py.vlen_dtype(values.dtype))[...] = [*values]
        file["labels"], file["extra/speaker"] = np.array([2, 0, 1], np.uint16), np.zeros(3, np.uint16)
        file["extra/keys"] = np.array([b"zero", b"one", b"two"])
    dataset = getattr(tonic.datasets, name)(str(tmp_path), **({} if name == "SHD" else {"split": "train"}))
    trains = from_tonic(dataset, 100, window=(0, 1_000_000))
    (x, targets), *_ = DataLoader(trains, batch_size=3)
    assert (x.T, x.shape, targets.tolist()) == (100, (3, 700), [2, 0, 1])
    for i in range(3):
        microseconds = (times[i].astype(np.float64) * 1e6).astype(int)
        inside = microseconds < 1_000_000
        spikes = torch.zeros(100, 700)
        spikes[microseconds[inside] // 10_000, units[i][inside].astype(int)] = 1
        assert torch.equal(x.to_dense()[:, i], spikes)
