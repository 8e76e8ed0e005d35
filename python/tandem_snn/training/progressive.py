"""Progressive tandem learning: an ANN becomes a spiking network layer by layer, from the first to the last."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn

from .. import nn as tnn
from ..data import Dataset
from ..errors import UserError
from ..nn.hooks import evaluating, watching
from ..nn.threshold import percentile_of, positive_sample, set_threshold
from .recipe import Recipe

SAMPLES = 1000  # of the training split, not augmented, by which thresholds are measured
_BATCH = 250


class Progressive:
    """The stages of a training, after Wu et al., "Progressive Tandem Learning", arXiv 2007.01204.

    The network has L layers with neurons. In stage k the first k layers spike, with measured thresholds, and the others
    are analog, as in the ANN. The first k - 1 layers are frozen, including their batch norms; the rest is trained, by
    the rule's gradient where it spikes. Then layer k + 1 begins to spike, with the threshold

        ϑ = a / T,    a: the recipe's percentile of the layer's nonzero activations at this point of the training.

    In stage L + 1 only the readout is trained. A stage starts from the best weights of the stage before, with a new
    optimizer. It ends when the validation metric has not improved for ``patience`` epochs, at the latest when its share
    of the remaining epochs is used up.

    Args:
        net: built by the recipe, so that a spike counts as its threshold.
        data: thresholds are measured on its training split.
        recipe: with ``progressive``.

    Attributes:
        layers: the layers whose neurons fire, in order of execution.
        stage: counted from 0; ``len(layers)`` is the readout's. -1: nothing spikes yet.
        start: the number of finished epochs at the start of the stage.

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
                f"epochs: expected {len(self.layers) + 1} or more, got {recipe.epochs}: progressive training has a "
                f"stage for each of {len(self.layers)} layers and one for the readout"
            )
        self.enter(-1, 0)

    @property
    def in_last_stage(self) -> bool:
        return self.stage == len(self.layers)

    def advance(self, epochs: int) -> None:
        """Begins the next stage, after ``epochs`` epochs: the next layer gets its threshold and spikes."""
        if self.stage + 1 < len(self.layers):
            self._measure(self.layers[self.stage + 1])
        self.enter(self.stage + 1, epochs)

    def enter(self, stage: int, start: int) -> None:
        """Sets which layers spike and which are trained. Thresholds stay."""
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
        """Makes every parameter trainable again."""
        self.net.requires_grad_(True)

    def keep_frozen(self) -> None:
        """Call after ``net.train()``: puts frozen layers into evaluation mode, so that their statistics stay."""
        for layer in self._frozen():
            layer.eval()

    def is_over(self, epochs: int, best_epoch: int | None) -> bool:
        """Whether the stage ends now.

        Args:
            epochs: the number of finished epochs.
            best_epoch: the stage's best epoch on the validation split, counted from 1.
        """
        patience = self.recipe.patience
        if patience is not None and best_epoch is not None and epochs - best_epoch >= patience:
            return True
        stages_left = len(self.layers) + 1 - self.stage
        share = -(-(self.recipe.epochs - self.start) // stages_left)
        return epochs - self.start >= share

    def _frozen(self) -> list[tnn.SpikingLayer]:
        """The layers that spiked in the stage before, and the shortcuts that lead into them."""
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
        if len(values):  # a silent layer keeps its threshold
            set_threshold(layer, percentile_of(values, self.recipe.percentile) / self.recipe.T)


def _last(path: nn.Module | None) -> tnn.SpikingLayer:
    """The layer that ends a path of a residual block."""
    assert path is not None
    return [layer for layer in path.modules() if isinstance(layer, tnn.SpikingLayer)][-1]
