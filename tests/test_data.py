"""Data sets of images: batches, augmentation, and files in the exact formats, whole and broken."""

import hashlib
import os
import pickle
import struct

import pytest
import torch

from tandem_snn import data
from tandem_snn.data.split import Chance, flip, shift, standardisation
from tandem_snn.errors import UserError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("TANDEM_CACHE", str(tmp_path_factory.mktemp("cache")))


def everything(split):
    return next(split.batches(len(split)))


def test_digits_are_split_the_same_way_every_time(digits):
    again = data.load("digits", validation=False)
    assert torch.equal(digits.test.targets, again.test.targets)
    assert (len(digits.train), len(digits.test), digits.shape) == (1347, 450, (1, 8, 8))
    assert digits.test.targets.bincount().min() >= 43  # stratified
    images, _ = everything(digits.train)
    assert images.mean().abs() < 1e-4
    assert images.std() == pytest.approx(1, abs=1e-3)


def test_batches(digits):
    in_order = list(digits.test.batches(200))
    assert [len(targets) for _, targets in in_order] == [200, 200, 50]
    assert torch.equal(torch.cat([targets for _, targets in in_order]), digits.test.targets)
    shuffled = [targets for _, targets in digits.test.batches(200, seed=1)]
    assert [len(targets) for targets in shuffled] == [200, 200]
    again = [targets for _, targets in digits.test.batches(200, seed=1, start=1)]
    assert torch.equal(shuffled[1], again[0])


def test_processes_share_the_batches_and_their_augmentation():
    train = data.load("digits", augment=["shift:2", "flip"]).train
    one = list(train.batches(60, seed=1))
    ranks = [list(train.batches(20, seed=1, rank=rank, world=3)) for rank in range(3)]
    for (images, targets), *parts in zip(one, *ranks, strict=True):
        assert torch.equal(images, torch.cat([x for x, _ in parts]))
        assert torch.equal(targets, torch.cat([y for _, y in parts]))
    in_order = [targets for rank in range(3) for _, targets in train.batches(64, rank=rank, world=3)]
    assert torch.equal(torch.cat(in_order).bincount(), train.targets.bincount())
    few = train.subset([0, 1])
    assert [len(list(few.batches(5, rank=rank, world=3))) for rank in range(3)] == [1, 1, 0]


def test_validation_is_a_fixed_part_of_the_training_samples(digits):
    split, again = data.load("digits", augment=["flip"]), data.load("digits")
    assert (len(split.train), len(split.validation), len(split.test)) == (1234, 113, 450)
    assert torch.equal(split.validation.inputs, again.validation.inputs)
    assert split.train.augmentations
    assert not split.validation.augmentations
    together = torch.cat([split.train.targets, split.validation.targets])
    assert torch.equal(together.bincount(), digits.train.targets.bincount())


@pytest.mark.parametrize(("arguments", "message"), [
    ({"batch_size": 0}, "batch_size"), ({"seed": -1}, "seed"), ({"rank": 2, "world": 2}, "rank: expected 0 to 1"),
])  # fmt: skip
def test_batches_check_their_arguments(digits, arguments, message):
    with pytest.raises(ValueError, match=message):
        next(digits.test.batches(**{"batch_size": 10, **arguments}))


def test_images_may_be_their_own_targets():
    loaded = data.load("digits", task="regression")
    assert (loaded.task, loaded.classes, loaded.class_names) == ("regression", 64, ())
    images, targets = next(loaded.train.batches(32, seed=0))
    assert torch.equal(images.flatten(1), targets)
    assert (targets.min(), targets.max()) == (0, 1)


def test_standardisation_is_per_channel():
    images = torch.randint(256, (50, 3, 4, 4), dtype=torch.uint8)
    images[:, 2] = 7
    scale, offset = standardisation(images)
    x = images * scale.view(-1, 1, 1) + offset.view(-1, 1, 1)
    torch.testing.assert_close(x[:, :2].transpose(0, 1).flatten(1).mean(1), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(x[:, :2].transpose(0, 1).flatten(1).std(1, correction=0), torch.ones(2))
    assert x[:, 2].abs().max() == 0


def test_shift_is_the_crop_of_a_padded_image():
    x = torch.randint(256, (6, 2, 5, 4), dtype=torch.uint8)
    u = torch.rand(6, 2, dtype=torch.float64)
    shifted = shift(x, u, 3)
    padded = torch.nn.functional.pad(x, (3, 3, 3, 3))
    for i, (row, column) in enumerate((u * 7).long().tolist()):
        assert torch.equal(shifted[i], padded[i, :, row : row + 5, column : column + 4])


def test_flip_mirrors_half_of_the_samples():
    x = torch.arange(2000 * 3).view(2000, 1, 1, 3)
    u = Chance(seed=0, step=0, first=0, count=2000, total=2000).uniform(1)
    same = (flip(x, u) == x).all((1, 2, 3))
    assert 900 < same.sum() < 1100
    assert torch.equal(flip(x, u)[~same], x[~same].flip(-1))


def test_augmentation_follows_from_seed_and_batch():
    train = data.load("digits", augment=["flip", "shift:1"]).train
    first, again, other = (next(train.batches(64, seed=s))[0] for s in (3, 3, 4))
    assert torch.equal(first, again)
    plain = next(train.without_augmentation().batches(64, seed=3))[0]
    assert not torch.equal(first, plain)
    assert not torch.equal(first, other)
    assert torch.equal(next(train.batches(64))[0], next(train.without_augmentation().batches(64))[0])


@pytest.mark.parametrize("name", ["flop", "flip:2", "shift:0", "shift:x"])
def test_unknown_augmentations_are_refused(name):
    with pytest.raises(UserError, match="augmentation"):
        data.load("digits", augment=[name])


def idx_bytes(shape):
    content = torch.randint(10, shape, dtype=torch.uint8).numpy().tobytes()
    return struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape) + content


@pytest.fixture
def idx(tmp_path):
    """Small files in the exact format of MNIST."""
    (tmp_path / "MNIST/raw").mkdir(parents=True)
    for part, n in ("train", 20), ("t10k", 10):
        for kind, shape in ("images-idx3", (n, 28, 28)), ("labels-idx1", (n,)):
            (tmp_path / f"MNIST/raw/{part}-{kind}-ubyte").write_bytes(idx_bytes(shape))
    return tmp_path


def test_idx_files_are_read(idx, monkeypatch):
    loaded = data.load("mnist", idx)
    assert loaded.train.inputs.shape == (18, 1, 28, 28)
    assert loaded.test.targets.dtype == torch.int64
    monkeypatch.setenv("TANDEM_DATA", str(idx))
    assert len(data.load("mnist").test) == 10


def test_what_is_wrong_with_idx_files_is_said(idx, monkeypatch):
    """torchvision reads them; what it finds wrong, and files that do not fit each other, are one line."""
    monkeypatch.delenv("TANDEM_DATA", raising=False)
    with pytest.raises(UserError, match="--data-dir or TANDEM_DATA"):
        data.load("mnist")
    with pytest.raises(UserError, match=r"no whole FashionMNIST in .*Dataset not found.*download=True.* where DIR is"):
        data.load("fashion-mnist", idx)
    images, labels = (idx / f"MNIST/raw/t10k-{kind}-ubyte" for kind in ("images-idx3", "labels-idx1"))
    whole = images.read_bytes(), labels.read_bytes()
    misfit = "the files of MNIST in .* do not fit each other"
    for path, content, message in (
        (images, whole[0][:-100], "no whole MNIST in .*download=True"),
        (labels, whole[1][:-1], "no whole MNIST in .*download=True"),
        (images, idx_bytes((10, 28)), "no whole MNIST in .*download=True"),
        (labels, idx_bytes((9,)), misfit),
        (labels, whole[1][:-1] + b"\x0a", misfit),  # a class beyond the ninth
        (images, idx_bytes((10, 28, 27)), misfit),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=message):
            data.load("mnist", idx)
        images.write_bytes(whole[0])
        labels.write_bytes(whole[1])


def test_tensors_are_samples(digits):
    split = data.TensorSplit(torch.arange(20.0).view(10, 2), torch.arange(10) % 3)
    assert [x.tolist() for x, _ in split.subset([7, 2]).batches(2)] == [[[14.0, 15.0], [4.0, 5.0]]]
    shuffled = torch.cat([y for _, y in split.batches(5, seed=0)])
    assert torch.equal(shuffled.sort().values, split.targets.sort().values)
    halves = [next(split.batches(2, seed=3, rank=rank, world=2))[0] for rank in range(2)]
    assert torch.equal(torch.cat(halves), next(split.batches(4, seed=3))[0])
    assert split.without_augmentation() is split
    assert split.to("meta").device.type == "meta"
    with pytest.raises(ValueError, match="targets: expected 10, as there are inputs, got 9"):
        data.TensorSplit(split.inputs, split.targets[1:])


def test_too_few_samples_are_refused(idx):
    for kind, shape in ("images-idx3", (1, 28, 28)), ("labels-idx1", (1,)):
        (idx / f"MNIST/raw/train-{kind}-ubyte").write_bytes(idx_bytes(shape))
    with pytest.raises(UserError, match="no training samples are left"):
        data.load("mnist", idx)
    assert len(data.load("mnist", idx, validation=False).train) == 1


def test_images_in_memory_keep_their_size():
    with pytest.raises(UserError, match="size: only for recordings and streams; the images of"):
        data.load("digits", size=4)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_real_files(name):
    if "TANDEM_DATA" not in os.environ:
        pytest.skip("TANDEM_DATA is not set: no MNIST files to read")
    loaded = data.load(name, validation=False)
    assert (len(loaded.train), len(loaded.test), loaded.shape) == (60_000, 10_000, (1, 28, 28))
    assert loaded.test.targets.bincount().min() > 800


@pytest.fixture
def batches(tmp_path, monkeypatch):
    """Small files in the exact format of CIFAR-10's Python version, with torchvision expecting their checksums."""
    CIFAR10 = pytest.importorskip("torchvision.datasets").CIFAR10
    folder = tmp_path / CIFAR10.base_folder
    folder.mkdir()

    def write(file, content):
        (folder / file).write_bytes(pickle.dumps(content))
        return [file, hashlib.md5((folder / file).read_bytes()).hexdigest()]

    def batch(n):
        pixels = torch.randint(256, (n, 3072), dtype=torch.uint8).numpy()
        return {"data": pixels, "labels": [i % 10 for i in range(n)], "batch_label": "", "filenames": []}

    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    monkeypatch.setattr(CIFAR10, "train_list", [write(f"data_batch_{i}", batch(12)) for i in range(1, 6)])
    monkeypatch.setattr(CIFAR10, "test_list", [write("test_batch", batch(10))])
    _, md5 = write("batches.meta", {"label_names": names})
    monkeypatch.setattr(CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": md5})
    return folder


def test_cifar10_is_read_from_the_official_batches(batches):
    loaded = data.load("cifar10", batches.parent, validation=False)
    assert (len(loaded.train), len(loaded.test), loaded.shape, loaded.classes) == (60, 10, (3, 32, 32), 10)
    assert loaded.class_names[3] == "cat"
    first = pickle.loads((batches / "data_batch_1").read_bytes())["data"][0]
    assert torch.equal(loaded.train.inputs[0].flatten(), torch.from_numpy(first))  # red, green, blue planes


def test_what_is_wrong_with_the_batches_is_said(batches):
    whole = (batches / "data_batch_3").read_bytes()
    (batches / "data_batch_3").write_bytes(whole[:-1])
    for _ in range(2):
        with pytest.raises(UserError, match=r"no whole CIFAR10 in .*not found or corrupted.*download=True"):
            data.load("cifar10", batches.parent)
        (batches / "data_batch_3").unlink(missing_ok=True)


def write_images(folder, classes, count, suffix, size=(32, 32), format="JPEG"):
    image = pytest.importorskip("PIL.Image")
    for name in classes:
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            pixels = torch.randint(256, (*size, 3), dtype=torch.uint8).numpy()
            image.fromarray(pixels).save(folder / name / f"{i:04}{suffix}", format=format)


def test_a_folder_of_jpeg_images(tmp_path):
    for part, n in ("train", 12), ("test", 3):
        write_images(tmp_path / "cifar10-jpeg" / part, ["cat", "dog"], n, ".jpg")
    loaded = data.load("cifar10-jpeg", tmp_path, validation=False)
    assert (len(loaded.train), len(loaded.test), loaded.class_names) == (24, 6, ("cat", "dog"))
    assert loaded.test.targets.tolist() == [0] * 3 + [1] * 3
    again = data.load("cifar10-jpeg", tmp_path, validation=False)
    assert torch.equal(loaded.train.inputs, again.train.inputs)  # from the cache

    path = tmp_path / "cifar10-jpeg/train/dog/0003.jpg"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(UserError, match=r"damaged file .*dog/0003.jpg"):
        data.load("cifar10-jpeg", tmp_path)
    write_images(tmp_path / "cifar10-jpeg/train", ["dog"], 12, ".jpg", size=(8, 8))
    with pytest.raises(UserError, match=r"dog/0000.jpg \(its size is 8×8"):
        data.load("cifar10-jpeg", tmp_path)
    (tmp_path / "cifar10-jpeg/train/eel").mkdir()
    with pytest.raises(UserError, match=r"no \*.jpeg or \*.jpg or \*.png in .*train/eel"):
        data.load("cifar10-jpeg", tmp_path)
    with pytest.raises(UserError, match=r"no folder .*elsewhere/cifar10-jpeg/train"):
        data.load("cifar10-jpeg", tmp_path / "elsewhere")


@pytest.mark.parametrize(("name", "test"), [("cifar10-jpeg", "test"), ("imagenet", "val")])
def test_folders_of_images_of_any_usual_kind(name, test, tmp_path):
    for part in "train", test:
        write_images(tmp_path / name / part, ["cat"], 4, ".PNG", format="PNG")
        write_images(tmp_path / name / part, ["dog"], 4, ".jpg")
        (tmp_path / name / part / ".thumbnails").mkdir()
        (tmp_path / name / part / "cat" / "notes.txt").write_text("")
    loaded = data.load(name, tmp_path, validation=False)
    assert (len(loaded.train), len(loaded.test), loaded.class_names) == (8, 8, ("cat", "dog"))
    assert next(loaded.test.batches(8))[1].tolist() == [0] * 4 + [1] * 4


def test_imagenet_is_a_stream(tmp_path):
    for part, n in ("train", 6), ("val", 2):
        write_images(tmp_path / "imagenet" / part, ["n01440764", "n01443537"], n, ".JPEG", size=(40, 60))
    loaded, spread = (data.load("imagenet", tmp_path, size=16, workers=n) for n in (0, 2))
    assert (loaded.shape, loaded.classes, len(loaded.train), len(loaded.validation)) == ((3, 16, 16), 2, 11, 1)
    state = torch.get_rng_state()
    mine, theirs = (list(each.train.batches(4, seed=5)) for each in (loaded, spread))
    assert torch.equal(torch.get_rng_state(), state)
    assert len(mine) == 2
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(mine, theirs, strict=True))
    assert torch.equal(next(loaded.train.batches(4, seed=5, start=1))[0], mine[1][0])
    halves = [next(loaded.train.batches(2, seed=5, rank=rank, world=2))[0] for rank in range(2)]
    assert torch.equal(torch.cat(halves), mine[0][0])
    assert not torch.equal(next(loaded.train.batches(4, seed=6))[0], mine[0][0])
    whole = torch.cat([x for x, _ in loaded.test.batches(3)])
    assert torch.equal(whole, loaded.test.take(torch.arange(4), None)[0])

    path = tmp_path / "imagenet/val/n01443537/0001.JPEG"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(UserError, match=r"damaged file .*n01443537/0001.JPEG"):
        list(loaded.test.batches(4))
    with pytest.raises(UserError, match=r"^data set 'imagenet': damaged file .*0001.JPEG"):
        list(spread.test.batches(4))
    with pytest.raises(UserError, match=r"no folder .*nowhere/imagenet/train.*image-net.org"):
        data.load("imagenet", tmp_path / "nowhere")
    with pytest.raises(UserError, match="its own augmentation"):
        data.load("imagenet", tmp_path, augment=["flip"])
