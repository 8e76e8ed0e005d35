"""Every recipe of the package trains: on samples of its data set's shape, whose class is written in them."""

from dataclasses import replace

import pytest
import torch

from tandem_snn.data import Dataset, EventSplit, ImageSplit
from tandem_snn.data.catalogue import EVENTS
from tandem_snn.training import Recipe, Trainer, list_recipes, load_recipe
from tandem_snn.training.library import describe

SHAPES = {"digits": (1, 8, 8), "mnist": (1, 28, 28), "fashion-mnist": (1, 28, 28), "n-mnist": (2, 34, 34)}
COLOUR = (3, 32, 32)
SAMPLES, BATCH, STEPS = 64, 16, 16


def dataset(recipe: Recipe) -> Dataset:
    """Ten patterns, each sample one of them with noise."""
    shape = SHAPES.get(recipe.data, COLOUR)
    targets = torch.arange(SAMPLES) % 10
    patterns = torch.rand(10, *shape)
    if recipe.data in EVENTS:
        steps = torch.rand(SAMPLES, recipe.T, *shape) < 0.3 * patterns[targets].unsqueeze(1)
        weights = 2 ** (torch.arange(recipe.T) % 8).view(-1, 1, 1, 1)
        planes = torch.stack([part.sum(1) for part in (steps * weights).split(8, 1)], 1).to(torch.uint8)
        split = EventSplit(planes.movedim(2, -1).contiguous(), recipe.T, targets)
    else:
        images = (200 * patterns[targets] + 55 * torch.rand(SAMPLES, *shape)).to(torch.uint8)
        regression = recipe.task == "regression"
        scale, offset = (1 / 255, 0.0) if regression else (1 / 60, -2.0)
        split = ImageSplit(
            images, None if regression else targets, torch.full(shape[:1], scale), torch.full(shape[:1], offset)
        )
    classes = images[0].numel() if recipe.task == "regression" else 10
    return Dataset(recipe.data, split, None, split, shape, classes, (), recipe.task)


TWINS = {load_recipe(name).of_twin().digest(): name for name in list_recipes()}
CASES = [(name, "SNN") for name in list_recipes()] + [(name, "ANN") for name in TWINS.values()]


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_the_loss_goes_down(name, kind):
    recipe = load_recipe(name)
    epochs = STEPS * BATCH // SAMPLES
    recipe = replace(
        recipe, batch_size=BATCH, epochs=epochs, schedule="constant", milestones=(), width=0.25 * recipe.width,
        init_from=None, init_gain=1,
    )  # fmt: skip
    data = dataset(recipe)
    trainer = Trainer(recipe.build(data, kind), data, recipe)
    while not trainer.finished:
        for _ in trainer.epoch():
            pass
        trainer.finish_epoch()
    first, *_, last = (record["loss"] for record in trainer.history)
    assert last < 0.8 * first


@pytest.mark.parametrize("name", list_recipes())
def test_each_says_what_it_is(name):
    assert describe(name).endswith(".")
