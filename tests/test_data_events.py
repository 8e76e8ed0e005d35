"""Event recordings: binning, the cache, and files in the exact formats, whole and broken."""

import os
import struct

import numpy as np
import pytest
import torch

import tandem_ext as te
from tandem_snn import data
from tandem_snn.data.binning import bin_events
from tandem_snn.data.readers import cache_folder, cached
from tandem_snn.errors import UserError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("TANDEM_CACHE", str(folder))
    return folder


def recording(n, height=34, width=34, seed=0):
    draw = np.random.default_rng(seed)
    rows = {"x": draw.integers(width, size=n), "y": draw.integers(height, size=n), "p": draw.integers(2, size=n)}
    return rows | {"t": np.sort(draw.integers(300_000, size=n))}


@pytest.mark.parametrize("bins", ["time", "count"])
@pytest.mark.parametrize("size", [(34, 34), (17, 10)])
def test_every_event_is_in_its_frame(bins, size):
    events = recording(500)
    expected = torch.zeros(11, 2, *size)
    first, last = events["t"].min(), events["t"].max()
    for i in range(500):
        share = i / 500 if bins == "count" else (events["t"][i] - first) / (last - first)
        y, x = events["y"][i] * size[0] // 34, events["x"][i] * size[1] // 34
        expected[min(int(share * 11 + 1e-9), 10), events["p"][i], y, x] = 1
    assert torch.equal(bin_events(events, (2, 34, 34), 11, bins, size).to_dense()[:, 0], expected)


def test_an_empty_recording_is_silent():
    for bins in "time", "count":
        assert not bin_events(recording(0), (2, 34, 34), 8, bins).counts.any()


def test_addresses_outside_the_sensor_are_refused():
    with pytest.raises(ValueError, match=r"x: expected addresses in 0\.\.19"):
        bin_events(recording(100), (2, 34, 20), 8, "time", (10, 10))


def write_n_mnist(path, events):
    """40 bits per event: x, y, polarity and 23 bits of time."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = zip(*(events[name].tolist() for name in "xypt"), strict=True)
    path.write_bytes(b"".join(bytes([x, y, p << 7 | t >> 16, t >> 8 & 255, t & 255]) for x, y, p, t in rows))


@pytest.fixture
def n_mnist(tmp_path):
    for part, n in ("Train", 3), ("Test", 1):
        for digit in range(10):
            for i in range(n):
                write_n_mnist(tmp_path / f"NMNIST/{part}/{digit}/{i:05}.bin", recording(200, seed=digit + 100 * i))
    return tmp_path


def test_n_mnist_is_read(n_mnist):
    loaded = data.load("n-mnist", n_mnist, T=10, validation=False)
    assert (loaded.kind, loaded.shape, loaded.classes, len(loaded.train), len(loaded.test)) == (
        "events", (2, 34, 34), 10, 30, 10,
    )  # fmt: skip
    train, targets = next(loaded.test.batches(10))
    assert isinstance(train, te.SpikeTrain)
    assert (train.T, list(train.shape), targets.tolist()) == (10, [10, 2, 34, 34], list(range(10)))
    assert train.planes.movedim(2, -1).is_contiguous()  # channels last
    assert torch.equal(train[4].to_dense(), bin_events(recording(200, seed=4), (2, 34, 34), 10).to_dense())
    small = data.load("n-mnist", n_mnist, T=10, bins="count", size=17)
    assert small.shape == (2, 17, 17)


def test_trains_are_shifted_as_images_are(n_mnist):
    train = data.load("n-mnist", n_mnist, T=10, augment=["shift:2", "flip"]).train
    moved, _ = next(train.batches(8, seed=3))
    again, _ = next(train.batches(8, seed=3))
    plain, _ = next(train.without_augmentation().batches(8, seed=3))
    assert torch.equal(moved.planes, again.planes)
    assert moved.planes.movedim(2, -1).is_contiguous()
    assert not torch.equal(moved.planes, plain.planes)
    inner = plain.to_dense()[..., 2:-2, 2:-2].sum((0, 2, 3, 4))
    total = plain.to_dense().sum((0, 2, 3, 4))
    kept = moved.to_dense().sum((0, 2, 3, 4))
    assert ((inner <= kept) & (kept <= total)).all()


def test_what_is_wrong_with_n_mnist_is_said(n_mnist):
    path = n_mnist / "NMNIST/Train/4/00001.bin"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(UserError, match=r"damaged file .*Train/4/00001.bin \(998 bytes are not .*tonic.*NMNIST"):
        data.load("n-mnist", n_mnist)
    path.write_bytes(bytes([99, 3, 0, 0, 0]))
    with pytest.raises(UserError, match=r"00001.bin \(x: expected addresses in 0..33, got 99"):
        data.load("n-mnist", n_mnist)
    for file in (n_mnist / "NMNIST/Test/7").iterdir():
        file.unlink()
    with pytest.raises(UserError, match=r"no \*.bin in .*Test/7"):
        data.load("n-mnist", n_mnist)
    (n_mnist / "NMNIST/Test/7").rmdir()
    with pytest.raises(UserError, match=r"NMNIST/Test holds 0, 1, 2, 3, 4, 5, 6, 8, 9"):
        data.load("n-mnist", n_mnist)
    with pytest.raises(UserError, match=r"no folder .*nowhere/NMNIST/Train: tonic.datasets.NMNIST\('DIR'\)"):
        data.load("n-mnist", n_mnist / "nowhere")


@pytest.mark.parametrize(
    ("options", "message"),
    [({"T": 0}, "T: expected an int from 1 to 65535"), ({"bins": "tim"}, "did you mean 'time'"),
     ({"size": 35}, "1..34 pixels"), ({"task": "regression"}, "regression is supported only for images")],
)  # fmt: skip
def test_options_are_checked(n_mnist, options, message):
    with pytest.raises(ValueError, match=message):
        data.load("n-mnist", n_mnist, **options)


def test_the_real_recordings():
    root = os.environ.get("TANDEM_DATA", "")
    if not os.path.isdir(os.path.join(root, "NMNIST")):
        pytest.skip("TANDEM_DATA holds no NMNIST")
    loaded = data.load("n-mnist", T=8, validation=False)
    train, _ = next(loaded.test.batches(100))
    assert 0.02 < train.counts.mean() / 8 < 0.3


def test_gestures_are_read(tmp_path):
    for part, users in ("ibmGestureTrain", (1, 2)), ("ibmGestureTest", (24,)):
        for user in users:
            for gesture in 0, 10:
                folder = tmp_path / "DVSGesture" / part / f"user{user:02}_led"
                folder.mkdir(parents=True, exist_ok=True)
                events = recording(300, 128, 128, seed=user + gesture)
                np.save(folder / f"{gesture}.npy", np.stack([events[name] for name in "xypt"], 1).astype(np.int64))
    loaded = data.load("dvs128-gesture", tmp_path, T=20, size=32, validation=False)
    assert (loaded.shape, loaded.classes, loaded.class_names[8]) == ((2, 32, 32), 11, "air drums")
    train, targets = next(loaded.test.batches(2))
    assert (train.T, targets.tolist()) == (20, [0, 10])
    expected = bin_events(recording(300, 128, 128, seed=34), (2, 128, 128), 20, size=(32, 32))
    assert torch.equal(train[1].to_dense(), expected.to_dense())
    path = tmp_path / "DVSGesture/ibmGestureTrain/user02_led/10.npy"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"damaged file .*user02_led/10.npy"):
        data.load("dvs128-gesture", tmp_path)
    path.rename(path.with_name("11.npy"))
    with pytest.raises(UserError, match=r"11.npy \(its name is not a class"):
        data.load("dvs128-gesture", tmp_path)
    with pytest.raises(UserError, match=r"no folder .*DVSGesture/ibmGestureTrain: tonic.datasets.DVSGesture"):
        data.load("dvs128-gesture", tmp_path / "nowhere")


def aedat4(events):
    """An AEDAT 4 file with one uncompressed packet of events: FlatBuffers written out by hand."""
    attributes = {"compression": "NONE", "originalModuleName": "capture", "originalOutputName": "events",
                  "typeDescription": "polarity events", "typeIdentifier": "EVTS"}  # fmt: skip
    info = "".join(f'<attr key="{key}" type="string">{value}</attr>' for key, value in attributes.items())
    size = '<attr key="sizeX" type="int">128</attr><attr key="sizeY" type="int">128</attr>'
    out = "/mainloop/Recorder/outInfo/"
    xml = (
        f'<dv version="2.0"><node name="outInfo" path="{out}"><node name="0" path="{out}0/">{info}'
        f'<node name="info" path="{out}0/info/">{size}</node></node></node></dv>'
    ).encode()
    header = struct.pack("<I4s5H2xiiiq", 20, b"IOHE", 10, 20, 4, 12, 8, 12, 0, 12, -1)
    header += struct.pack("<I", len(xml)) + xml + b"\0"
    columns = (events[name].tolist() for name in "txyp")
    rows = b"".join(struct.pack("<qhhB3x", *row) for row in zip(*columns, strict=True))
    packet = struct.pack("<I4s3H2xiI4xI", 16, b"EVTS", 6, 8, 4, 8, 8, len(events["t"])) + rows
    packet = struct.pack("<I", len(packet)) + packet
    return b"#!AER-DAT4.0\r\n" + struct.pack("<I", len(header)) + header + struct.pack("<II", 0, len(packet)) + packet


def test_cifar10_dvs_is_read(tmp_path):
    pytest.importorskip("aedat")
    objects = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    for c, name in enumerate(objects):
        folder = tmp_path / "CIFAR10DVS" / name
        folder.mkdir(parents=True)
        for i in range(10):
            (folder / f"cifar10_{name}_{i}.aedat4").write_bytes(aedat4(recording(50, 128, 128, seed=10 * c + i)))
    loaded = data.load("dvs-cifar10", tmp_path, T=20, size=42, validation=False)
    assert (len(loaded.train), len(loaded.test), loaded.shape) == (90, 10, (2, 42, 42))
    train, targets = next(loaded.test.batches(10))
    assert targets.tolist() == list(range(10))
    expected = bin_events(recording(50, 128, 128, seed=29), (2, 128, 128), 20, size=(42, 42))
    assert torch.equal(train[2].to_dense(), expected.to_dense())
    path = tmp_path / "CIFAR10DVS/bird/cifar10_bird_4.aedat4"
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserError, match=r"damaged file .*cifar10_bird_4.aedat4.*CIFAR10DVS\('DIR'\)"):
        data.load("dvs-cifar10", tmp_path)


def test_the_cache_follows_parameters_and_files(cache, tmp_path):
    source, made = tmp_path / "source", []
    source.write_text("one")

    def make():
        made.append(1)
        return {"x": torch.arange(100), "y": torch.ones(2, 3, dtype=torch.uint8)}

    def is_made(**parameters):
        """Whether what is asked for was not there."""
        before = len(made)
        assert torch.equal(cached("test", parameters, [source], make)["x"], torch.arange(100))
        return len(made) > before

    assert cache_folder() == cache
    assert [is_made(T=T) for T in (8, 8, 9)] == [True, False, True]
    source.write_text("another")
    assert is_made(T=8)
    entries = list(cache.iterdir())
    for damage in (lambda content: content[:-1] + bytes([content[-1] ^ 1])), (lambda content: content[:30]):
        for entry in entries:
            entry.write_bytes(damage(entry.read_bytes()))
        assert [is_made(T=8) for _ in range(2)] == [True, False]  # the damage is found, and repaired
    assert len(list(cache.iterdir())) == len(entries) == 3


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TANDEM_CACHE", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="could not be written"):
        assert cached("test", {}, [], lambda: {"x": torch.ones(1)})["x"].item() == 1
