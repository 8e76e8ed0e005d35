"""Progressive tandem learning: a network becomes a spiking one layer by layer, each after those before it."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn

from .. import nn as tnn
from ..data import Dataset
from ..errors import UserError
from ..measure.hooks import evaluating, watching
from ..nn.threshold import percentile_of, positive_sample, set_threshold
from .recipe import Recipe

SAMPLES = 1000  # of the training split, not augmented, by which thresholds are measured
_BATCH = 250


class Progressive:
    """The stages of a training, after Wu et al., "Progressive Tandem Learning", arXiv 2007.01204.

    In stage k of L layers with neurons, the first k spike, with thresholds that were measured, and the others are what
    they are in the ANN. The first k - 1 are frozen, their batch norms included; the rest is trained, through the rule's
    gradient where it spikes. Then layer k + 1 gets its threshold,

        ϑ = a / T,    a: the recipe's percentile of its activations that are not zero, in the network as it then is,

    and its spikes. In stage L + 1 only the readout is trained. Each stage begins at the best weights of the one before,
    with a new optimizer. It ends when the validation metric has not improved for ``patience`` epochs, and at the latest
    when it has used its share of the epochs that are left.

    Args:
        net: built by the recipe, so that spikes are worth their threshold.
        data: its training split, for the thresholds.
        recipe: with ``progressive``.

    Attributes:
        layers: those with neurons that fire, in the order in which they work.
        stage: counted from 0; ``len(layers)`` is the readout's. -1: nothing spikes yet.
        start: the number of epochs that were finished when the stage began.

    >>> recipe = Recipe(model="FC32-FC16", progressive=True, epochs=3)
    >>> data = recipe.load()
    >>> stages = Progressive(recipe.build(data), data, recipe)
    >>> stages.advance(0)
    >>> [layer.analog for layer in stages.layers]
    [False, True]
    """

    def __init__(self, net: nn.Module, data: Dataset, recipe: Recipe) -> None:
        self.net, self.data, self.recipe = net, data, recipe
        self.layers: list[tnn.SpikingLayer] = []
        self._shortcuts: list[tuple[tnn.SpikingLayer, int]] = []  # each with the number of layers before its block
        self._find_layers()
        if recipe.epochs <= len(self.layers):
            raise UserError(
                f"epochs: progressive training has a stage for each of {len(self.layers)} layers and one for the "
                f"readout, so expected {len(self.layers) + 1} or more, got {recipe.epochs}"
            )
        self.enter(-1, 0)

    @property
    def in_last_stage(self) -> bool:
        return self.stage == len(self.layers)

    def advance(self, epochs: int) -> None:
        """On to the next stage, after so many epochs: the next layer gets its threshold and its spikes."""
        if self.stage + 1 < len(self.layers):
            self._measure(self.layers[self.stage + 1])
        self.enter(self.stage + 1, epochs)

    def enter(self, stage: int, start: int) -> None:
        """Sets who spikes and who is trained, and leaves thresholds alone."""
        self.stage, self.start = stage, start
        spiking = min(stage + 1, len(self.layers))
        for i, layer in enumerate(self.layers):
            layer.analog = i >= spiking
        for shortcut, before in self._shortcuts:
            shortcut.analog = before > spiking
        self.release()
        for layer in self._frozen():
            layer.requires_grad_(False)

    def release(self) -> None:
        """Every parameter can be trained again."""
        self.net.requires_grad_(True)

    def keep_frozen(self) -> None:
        """To be called after ``net.train()``: frozen layers work as in evaluation, and their statistics stay."""
        for layer in self._frozen():
            layer.eval()

    def is_over(self, epochs: int, best_epoch: int | None) -> bool:
        """Whether the stage ends now.

        Args:
            epochs: the number of finished epochs.
            best_epoch: the stage's best by the validation split, counted from 1.
        """
        patience = self.recipe.patience
        if patience is not None and best_epoch is not None and epochs - best_epoch >= patience:
            return True
        stages_left = len(self.layers) + 1 - self.stage
        share = -(-(self.recipe.epochs - self.start) // stages_left)
        return epochs - self.start >= share

    def _frozen(self) -> list[tnn.SpikingLayer]:
        """The layers that spiked in the stage before, with the shortcuts into them."""
        frozen = self.layers[: max(self.stage, 0)]
        blocks = (m for m in self.net.modules() if isinstance(m, tnn.Residual) and m.shortcut is not None)
        return frozen + [_last(block.shortcut) for block in blocks if _last(block.body) in frozen]

    def _find_layers(self) -> None:
        def note(name: str, layer: Any, x: Any, keywords: dict[str, Any], y: Any) -> None:
            if keywords.get("fire", True):
                self.layers.append(layer)
            else:
                self._shortcuts.append((layer, len(self.layers)))

        with evaluating(self.net), watching(self.net, (tnn.SpikingLayer,), note):
            self.net(self._samples(1, 1)[0])

    def _samples(self, count: int, batch_size: int) -> list[Any]:
        batches = self.data.train.without_augmentation().batches(batch_size)
        return [x for x, _ in itertools.islice(batches, count // batch_size)]

    def _measure(self, layer: tnn.SpikingLayer) -> None:
        seen: list[Tensor] = []

        def keep(name: str, module: nn.Module, x: Any, keywords: dict[str, Any], activation: Any) -> None:
            if module is layer:
                seen.append(positive_sample(activation))

        with evaluating(self.net), watching(self.net, (tnn.SpikingLayer,), keep):
            for x in self._samples(SAMPLES, _BATCH):
                self.net(x)
        values = torch.cat(seen)
        if len(values):  # one that is silent throughout keeps its threshold
            set_threshold(layer, percentile_of(values, self.recipe.percentile) / self.recipe.T)


def _last(path: nn.Module | None) -> tnn.SpikingLayer:
    """The layer that ends a path of a residual block."""
    assert path is not None
    return [layer for layer in path.modules() if isinstance(layer, tnn.SpikingLayer)][-1]
