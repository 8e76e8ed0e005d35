"""Data of the experiments: fixed splits, augmentation of each sample by itself, files whole and broken."""

import os
import socket
import struct
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
from cases import recording

import tandem_ext as te
from data import augmented, load
from recipe import Recipe
from tandem_snn import ann

N_MNIST, DVS = (34, 34, 2), (128, 128, 2)


@pytest.fixture(autouse=True)
def _offline(monkeypatch):
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a connection"))


def test_splits_are_fixed(digits):
    split, again = (load(Recipe(augment=("flip",)), None) for _ in range(2))
    assert (len(split.train), len(split.validation), len(split.test)) == (1234, 113, 450)
    assert torch.equal(split.validation.inputs, again.validation.inputs)
    assert (split.train.augment, split.validation.augment, split.test.augment) == (("flip",), (), ())
    together = torch.cat([split.train.targets, split.validation.targets])
    assert torch.equal(together.bincount(), digits.train.targets.bincount())
    x, _ = digits.train.take(torch.arange(len(digits.train)))
    torch.testing.assert_close(torch.stack([x.mean(), x.std()]), torch.tensor([0.0, 1.0]), atol=1e-3, rtol=0)
    assert x.stride() == (64, 1, 8, 1)  # not those that a tensor with one channel has after contiguous()
    own = load(Recipe(task="regression"), None)  # images may be their own targets
    images, targets = next(own.train.epoch(0, 32))
    assert own.outputs == 64
    assert torch.equal(images.flatten(1), targets)
    assert (targets.min(), targets.max()) == (0, 1)


def test_each_sample_is_augmented_by_itself():
    x = torch.randint(1, 256, (200, 2, 5, 4), dtype=torch.uint8)
    draws = torch.rand(200, 3)
    both = augmented(x, ("flip", "shift:3"), draws)
    padded = torch.nn.functional.pad(x, (3, 3, 3, 3))
    for i, (u, row, column) in enumerate(draws.tolist()):
        image = padded[i].flip(-1) if u < 0.5 else padded[i]
        row, column = int(row * 7), int(column * 7)
        assert torch.equal(both[i], image[:, row : row + 5, column : column + 4])
    assert 60 < (draws[:, 0] < 0.5).sum() < 140
    with pytest.raises(ValueError, match="augment: expected flip, shift or shift:PIXELS, got 'turn'"):
        augmented(x, ("turn",), draws)


def test_both_encodings_see_the_same_images():
    """Shifted ones are filled with black before they are standardised."""
    recipe = {"augment": ("flip", "shift:2"), "timing": "window"}
    direct, pixels = (load(Recipe(encoding=encoding, **recipe), None) for encoding in ("direct", "pixels"))
    encoder = ann.Encoder(8, "pixels", mean=pixels.pixels[0], std=pixels.pixels[1])
    pairs = zip(direct.train.epoch(0, 64), pixels.train.epoch(0, 64), strict=True)
    for (image, target), (counts, same_target) in pairs:
        torch.testing.assert_close(encoder(counts), image, rtol=1e-5, atol=1e-5)
        assert torch.equal(target, same_target)


def test_processes_share_the_batches_of_one():
    train = load(Recipe(augment=("flip", "shift:1")), None).train
    batches = list(train.epoch(3, 64))
    assert len(batches) == 1234 // 64
    assert not torch.equal(batches[0][0], next(train.epoch(4, 64))[0])
    for (x, y), *parts in zip(batches, train.epoch(3, 64, 0, 2), train.epoch(3, 64, 1, 2), strict=True):
        assert torch.equal(torch.cat([part for part, _ in parts]), x)
        assert torch.equal(torch.cat([part for _, part in parts]), y)
    seen = torch.cat([y for _, y in train.batches(100)])
    shared = [torch.cat([y for _, y in train.batches(100, rank, 2)]) for rank in range(2)]
    assert torch.equal(seen, train.targets)
    assert torch.equal(shared[1], train.targets[1::2])


def expected(events, T, height, size=None):
    side = height if size is None else size
    scaled = {name: events[name] * side // height if name in "xy" else events[name] for name in "txyp"}
    return te.SpikeTrain.from_events(scaled, (2, side, side), T).to_dense()[:, 0]


@pytest.fixture
def n_mnist(tmp_path):
    """Files have 40 bits per event: x, y, polarity and 23 bits of time."""
    pytest.importorskip("tonic")
    for part, digit, i in [("Test", digit, 0) for digit in range(10)] + [*product(["Train"], range(10), range(3))]:
        path, events = tmp_path / f"NMNIST/{part}/{digit}/{i:05}.bin", recording(200, N_MNIST, digit + 100 * i)
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = zip(*(events[name].tolist() for name in "xypt"), strict=True)
        path.write_bytes(b"".join(bytes([x, y, p << 7 | t >> 16, t >> 8 & 255, t & 255]) for x, y, p, t in rows))
    return tmp_path


def test_n_mnist_is_read_and_augmented_as_images_are(n_mnist):
    data = load(Recipe(data="n-mnist", T=10, validation=False), n_mnist)
    assert (data.shape, data.outputs, len(data.train), len(data.test)) == ((2, 34, 34), 10, 30, 10)
    train, targets = next(data.test.batches(10))
    assert (train.T, list(train.shape), targets.tolist()) == (10, [10, 2, 34, 34], list(range(10)))
    assert train.planes.movedim(2, -1).is_contiguous()  # channels last
    assert torch.equal(train.to_dense()[:, 4], expected(recording(200, N_MNIST, 4), 10, 34))
    small = load(Recipe(data="n-mnist", T=10, size=17), n_mnist)
    assert small.shape == (2, 17, 17)
    train = load(Recipe(data="n-mnist", T=10, validation=False), n_mnist).train.inputs
    draws = torch.rand(30, 3)
    moved = augmented(train, ("flip", "shift:2"), draws)
    for step, images in zip(moved.to_dense(), train.to_dense(), strict=True):
        assert torch.equal(step, augmented(images, ("flip", "shift:2"), draws))


def test_gestures_are_read(tmp_path):
    pytest.importorskip("tonic")
    for (part, user), gesture in product([("Train", 1), ("Train", 2), ("Test", 24)], (0, 10)):
        folder = tmp_path / "DVSGesture" / f"ibmGesture{part}" / f"user{user:02}_led"
        folder.mkdir(parents=True, exist_ok=True)
        events = recording(300, DVS, user + gesture)
        np.save(folder / f"{gesture}.npy", np.stack([events[name] for name in "xypt"], 1).astype(np.int64))
    data = load(Recipe(data="dvs-gesture", T=20, size=32, validation=False), tmp_path)
    train, targets = next(data.test.batches(2))
    assert (data.shape, data.outputs, train.T, targets.tolist()) == ((2, 32, 32), 11, 20, [0, 10])
    assert torch.equal(train.to_dense()[:, 1], expected(recording(300, DVS, 34), 20, 128, 32))


def test_cifar10_dvs_is_read(tmp_path, monkeypatch):
    """Every tenth recording of a class is a test sample."""
    io = pytest.importorskip("tonic.io")
    for c, name in enumerate(["airplane", "automobile", "bird"]):
        folder = tmp_path / "CIFAR10DVS" / name
        folder.mkdir(parents=True)
        for i in range(10):
            (folder / f"cifar10_{name}_{i}.aedat4").write_text(str(10 * c + i))
    monkeypatch.setattr(io, "read_aedat4", lambda path: recording(50, DVS, int(Path(path).read_text())))
    data = load(Recipe(data="dvs-cifar10", T=20, size=42, validation=False), tmp_path)
    assert (len(data.train), len(data.test), data.shape) == (27, 3, (2, 42, 42))
    train, targets = next(data.test.batches(10))
    assert targets.tolist() == [0, 1, 2]
    assert torch.equal(train.to_dense()[:, 2], expected(recording(50, DVS, 29), 20, 128, 42))


@pytest.fixture
def mnist(tmp_path):
    pytest.importorskip("torchvision")
    draw = np.random.default_rng(0)
    for part, n in ("train", 24), ("t10k", 10):
        for kind, values in ("images", draw.integers(256, size=(n, 28, 28))), ("labels", np.arange(n) % 10):
            path = tmp_path / f"MNIST/raw/{part}-{kind}-idx{values.ndim}-ubyte"
            path.parent.mkdir(parents=True, exist_ok=True)
            header = bytes([0, 0, 8, values.ndim]) + b"".join(struct.pack(">I", n) for n in values.shape)
            path.write_bytes(header + values.astype(np.uint8).tobytes())
    return tmp_path


def test_mnist_is_read(mnist):
    data = load(Recipe(data="mnist"), mnist)
    assert (data.shape, data.outputs, len(data.train), len(data.validation)) == ((1, 28, 28), 10, 22, 2)
    assert data.test.targets.tolist() == list(range(10))


def test_image_files_are_read(tmp_path):
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("torchvision")
    draw, pixels = np.random.default_rng(0), {}
    for part in "train", "test":
        for i, name in enumerate(["cat", "dog"]):
            folder = tmp_path / "cifar10-jpeg" / part / name
            folder.mkdir(parents=True)
            pixels[part, i] = draw.integers(256, size=(32, 32, 3), dtype=np.uint8)
            image.fromarray(pixels[part, i]).save(folder / "one.png")
    data = load(Recipe(data="cifar10-jpeg", validation=False), tmp_path)
    assert (data.shape, data.outputs, data.test.targets.tolist()) == ((3, 32, 32), 2, [0, 1])
    assert np.array_equal(data.test.inputs[1].movedim(0, -1).numpy(), pixels["test", 1])


def test_image_files_of_any_size_become_squares(tmp_path):
    image = pytest.importorskip("PIL.Image")
    pytest.importorskip("torchvision")
    for part, width in ("train", 48), ("val", 80):
        folder = tmp_path / "imagenet" / part / "cat"
        folder.mkdir(parents=True)
        pixels = np.zeros((32, width, 3), np.uint8)
        pixels[:, width // 2 - 16 : width // 2 + 16] = 200  # the middle square
        image.fromarray(pixels).save(folder / "one.png")
    data = load(Recipe(data="imagenet", size=16, validation=False), tmp_path)
    assert data.shape == (3, 16, 16)
    for split in data.train, data.test:
        assert split.inputs[:, :, :, 1:-1].eq(200).all()


@pytest.mark.parametrize(("recipe", "damage", "words"), [
    ({"data": "digit"}, None, "unknown data set 'digit': expected one of digits, mnist, "),
    ({"data": "cifar10"}, None, "needs files: give their folder with --data-dir or TANDEM_DATA"),
    ({"data": "cifar10"}, None, "data set 'cifar10' cannot be read from .*not found"),
    ({"data": "cifar10-jpeg"}, None, "data set 'cifar10-jpeg' cannot be read from .*cifar10-jpeg/train"),
    ({"data": "dvs-gesture"}, None, "data set 'dvs-gesture' cannot be read from .*: there are no recordings"),
    ({"data": "n-mnist"}, None, "data set 'n-mnist' cannot be read from .*NMNIST/Train"),
    ({"data": "n-mnist", "task": "regression"}, None, "task: regression needs images"),
    ({"data": "mnist", "size": 14}, None, "size: only recordings and image files are resized"),
    ({"data": "mnist"}, "MNIST/raw/train-images-idx3-ubyte", "data set 'mnist' cannot be read from"),
])  # fmt: skip
def test_what_is_wrong_is_said(recipe, damage, words, mnist):
    if damage is not None:
        os.truncate(mnist / damage, 1000)
    with pytest.raises(ValueError, match=words) as raised:
        load(Recipe(**recipe), None if "TANDEM_DATA" in words else mnist)
    assert "\n" not in str(raised.value)
