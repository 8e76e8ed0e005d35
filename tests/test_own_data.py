"""What people have: torch's data sets, DataLoaders and tensors in the engine, and our splits in a DataLoader."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, Subset, TensorDataset, WeightedRandomSampler

import tandem_ext as te
import tandem_snn.nn as tnn
from tandem_snn import data
from tandem_snn.errors import UserError
from tandem_snn.training import Recipe, Trainer, evaluate, fit, make_task

RECIPE = Recipe(epochs=2, batch_size=10)


def samples(n=40):
    generator = torch.Generator().manual_seed(n)
    x = torch.rand(n, 6, generator=generator)
    return x, (x[:, 0] > 0.5).long()


def network():
    torch.manual_seed(0)
    return nn.Sequential(tnn.Encoder(T=4), tnn.Linear(6, 8), tnn.Readout(8, 2))


SOURCES = {
    "tensors": lambda x, y: (x, y),
    "arrays": lambda x, y: (x.numpy(), y.int().numpy()),
    "dataset": TensorDataset,
    "list": lambda x, y: list(zip(x, y.tolist(), strict=True)),
    "subset": lambda x, y: Subset(TensorDataset(x, y), range(len(x))),
    "loader": lambda x, y: DataLoader(TensorDataset(x, y), batch_size=10, shuffle=True),
    "workers": lambda x, y: DataLoader(TensorDataset(x, y), batch_size=10, num_workers=1),
    "split": lambda x, y: data.TensorSplit(x, y),
    "loader of a split": lambda x, y: DataLoader(data.TensorSplit(x, y), batch_size=10),
}


@pytest.fixture(scope="module")
def expected():
    """The weights and what came of it, by splits of tensors."""
    net = network()
    tensors = {name: data.TensorSplit(*samples(n)) for name, n in (("train", 40), ("validation", 12), ("test", 11))}
    return fit(net, data.Dataset.of(**tensors), RECIPE), net.state_dict()


@pytest.mark.parametrize("kind", SOURCES)
def test_the_same_samples_give_the_same_weights(kind, expected):
    """Whatever they come in: order and batches are the engine's."""
    make, classes = SOURCES[kind], {"classes": 2} if kind == "list" else {}
    net = network()
    given = {"train": make(*samples()), "validation": make(*samples(12)), "test": make(*samples(11))} | classes
    fitted = fit(net, given, RECIPE)
    reference, weights = expected
    for name, weight in net.state_dict().items():
        assert torch.equal(weight, weights[name])
    assert fitted.test == reference.test
    assert evaluate(net, given["test"], make_task("classification")) == fitted.test


def test_one_number_each_is_a_regression():
    x, y = samples()
    net = nn.Sequential(tnn.Encoder(T=4), tnn.Linear(6, 8), tnn.Readout(8, 1))
    results = []
    for targets in (y.float(), y.float().unsqueeze(1)):
        torch.manual_seed(0)
        for module in net[1:]:
            module.reset_parameters()
        results.append(fit(net, {"train": (x, targets), "test": (x, targets)}, RECIPE).test)
    assert results[0] == results[1]


@pytest.mark.parametrize(("part", "change", "message"), [
    ("train", lambda x, y: (x, y - 1), r"train: expected classes from 0 to 0, got -1"),
    ("test", lambda x, y: (x, y + 1), r"test: expected classes from 0 to 1, got 2"),
    ("validation", lambda x, y: (x, y - 1), r"validation: expected classes from 0 to 1, got -1"),
    ("train", lambda x, y: (x, nn.functional.one_hot(y)), r"int64 \[N\], got torch.int64 \[40, 2\].*argmax"),
    ("train", lambda x, y: (x[:0], y[:0]), "train: it has no samples"),
    ("test", lambda x, y: (x[:0], y[:0]), "test: it has no samples"),
    ("test", lambda x, y: (x / 0, y), "test: its inputs are not all finite"),
])  # fmt: skip
def test_tensors_that_cannot_be_classes_are_named_before_the_training(part, change, message):
    splits = {"train": samples(), "validation": samples(), "test": samples()}
    with pytest.raises(ValueError, match=message):
        fit(network(), splits | {part: change(*samples())}, RECIPE)


def test_random_transforms_repeat():
    class Noisy(torch.utils.data.Dataset):
        classes = ("off", "on")

        def __len__(self):
            return 40

        def __getitem__(self, i):
            noise = random.random() + np.random.rand() + torch.rand(()).item()  # noqa: NPY002
            return samples()[0][i] + noise, int(samples()[1][i])

    loaded = data.Dataset.of(Noisy(), samples(12))
    assert (loaded.classes, loaded.class_names, loaded.task) == (2, ("off", "on"), "classification")
    first, again = ([x for x, _ in loaded.train.batches(10, seed=3)] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert len({float(x[0, 0]) for x in first}) == 4
    state = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    next(loaded.train.batches(10, seed=3))
    assert torch.equal(torch.get_rng_state(), state[0])
    assert random.getstate() == state[1]
    assert np.array_equal(np.random.get_state()[1], state[2])  # noqa: NPY002


def test_trains_are_samples_too():
    spikes = te.SpikeTrain.from_dense((torch.rand(5, 30, 6) < 0.5).float())
    loaded = data.Dataset.of((spikes, torch.arange(30) % 3), [(spikes[i], i % 3) for i in range(30)])
    assert (loaded.kind, loaded.shape, loaded.classes) == ("events", (6,), 3)
    assert torch.equal(next(loaded.test.batches(30))[0].planes, spikes.planes)
    chosen, targets = next(loaded.train.subset([4, 2]).batches(8))
    assert torch.equal(chosen.planes, spikes.planes[:, [4, 2]])
    assert targets.tolist() == [1, 2]
    assert next(loaded.test.subset([9, 4, 2]).subset([1, 2]).batches(8))[1].tolist() == [1, 2]


def test_what_cannot_be_used_is_said():
    x, y = samples()
    loader = DataLoader(TensorDataset(x, y), batch_size=4)

    class Endless(IterableDataset):
        def __iter__(self):
            yield x[0], 0

    for given, said in (
        (loader, r"data: expected a tandem_snn.data.Dataset or \{'train': ..., 'test': ...\}.*got DataLoader"),
        ({"training": loader}, r"data: .*got the keys \['training'\]"),
        ({"train": 3, "test": loader}, "train: expected a data set with .* got int"),
        ({"train": (x, y, y), "test": loader}, r"train: .* got \(Tensor, Tensor, Tensor\)"),
        ({"train": Endless(), "test": loader}, "train: expected a data set with .* got Endless"),
        ({"train": DataLoader(Endless()), "test": loader}, "train: a DataLoader with a custom sampler"),
        ({"train": DataLoader(TensorDataset(x, y), 4, sampler=WeightedRandomSampler(y + 1.0, 40)), "test": loader},
         "train: a DataLoader with a custom sampler"),
        ({"train": TensorDataset(x), "test": loader}, "dataset: .* got samples of"),
        ({"train": TensorDataset(x.byte(), y), "test": loader}, "expected floating-point inputs.* torch.uint8"),
        ({"train": (x.byte(), y), "test": loader}, "inputs: expected a floating-point tensor .* got torch.uint8"),
        ({"train": (x, y[:-1]), "test": loader}, "targets: expected 40"),
        ({"train": [(x[0], 1)], "test": loader}, "classes: not known for this data set"),
        ({"train": [], "test": loader}, "dataset: expected samples, got none"),
        ({"train": loader, "test": loader, "task": "clasification"}, "did you mean 'classification'"),
        ({"train": loader, "test": loader}, "batch_size: 10 in the recipe, 4 in the DataLoader"),
    ):  # fmt: skip
        with pytest.raises((TypeError, ValueError), match=said):
            Trainer(network(), given, RECIPE)
    assert issubclass(UserError, ValueError)


def test_a_data_loader_of_a_split():
    loaded = data.load("digits")
    (images, labels), *_ = DataLoader(loaded.train, batch_size=32)
    expected, targets = next(loaded.train.batches(32))
    assert torch.equal(images, expected)
    assert torch.equal(labels, targets)
    with pytest.raises(IndexError, match="1234 is out of range for 1234 samples"):
        loaded.train[1234]
    assert torch.equal(loaded.train[-1][0], loaded.train[1233][0])


def test_a_data_loader_of_an_augmented_split_augments():
    train = data.load("digits", augment=["shift:2"]).train
    torch.manual_seed(0)
    drawn = [train[5][0] for _ in range(6)]
    assert len({tuple(image.flatten().tolist()) for image in drawn}) > 1
    torch.manual_seed(0)
    assert torch.equal(train[5][0], drawn[0])


def test_a_data_loader_of_recordings():
    planes = torch.randint(0, 256, (1, 6, 2, 4, 4), dtype=torch.uint8)
    split = data.TensorSplit(te.SpikeTrain(planes, 8), torch.arange(6))
    (trains, labels), *_ = DataLoader(split, batch_size=6)
    expected, targets = next(split.batches(6))
    assert torch.equal(trains.planes, expected.planes)
    assert torch.equal(labels, targets)
