"""A recipe: everything that determines a training run."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from os import PathLike
from typing import Any

import torch
from torch import nn

from tandem_ext.checks import GATES, TIMINGS

from .. import memory
from ..data import EVENTS, NAMES, TASKS, Dataset, load
from ..data.augment import parse
from ..data.events import BINS
from ..errors import UserError, check_name
from ..models import check_model, create_model, create_twin
from ..nn.encoder import MODES
from .values import from_yaml

OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("one-cycle", "cosine", "multistep", "constant")
PRECISIONS = ("fp32", "bf16", "fp16")
TWIN = "twin"  # as a value of init_from
CONTINUED = "ANN continued"  # the control of a network that started from its twin: the twin, trained as long
KINDS = ("SNN", "ANN", CONTINUED)

# What is handed on to the model where it is given; None leaves the choice to the model.
MODEL_KEYS = (
    "encoding", "dropout", "norm", "gamma", "threshold", "learn_threshold", "leak", "gate", "v_init", "weight_bits",
    "ann_units", "timing",
)  # fmt: skip
_POSITIVE = (
    "epochs", "batch_size", "lr", "width", "threshold", "gamma", "clip_grad_norm", "lr_factor", "seeds", "init_gain",
    "patience",
)  # fmt: skip

# What the ANN has no use for. Of T, event data need the number of frames.
NEURON_KEYS = {
    "T", "gamma", "threshold", "learn_threshold", "leak", "gate", "v_init", "weight_bits", "ann_units", "timing",
    "synops_penalty", "init_from", "init_gain", "progressive", "percentile", "patience",
}  # fmt: skip


_GREATEST_SEED = 2**63 - 1  # of torch's generators


@dataclass(frozen=True)
class Recipe:
    """A training run. Two runs of equal recipes on one machine's CPU give equal weights, bit for bit, if they have the
    same number of threads, among which torch splits its own sums.

    Attributes:
        data, task, augment, bins, size: the data set's name, what it is used for ("classification" or "regression"),
            and how, see :func:`tandem_snn.data.load`.
        validation: hold a fixed part of the training samples out and keep the weights of the epoch that does best on
            it. False: train on everything and keep the weights of the last epoch.
        model, T, width: the network's name or architecture, see :func:`tandem_snn.create_model`, its time steps and the
            multiplier of its channels.
        encoding, dropout, norm, gamma, threshold, learn_threshold, leak, gate, v_init, weight_bits, ann_units,
            timing: see the same function; None is the model's own choice, and for encoding "events" or "direct" by what
            the data are.
        options: further arguments of the model.
        init_from, init_gain: start the spiking network from a trained one: "twin", the ANN that is trained first, or
            the path of a checkpoint, of an ANN or a spiking network with the same layers. What becomes of its weights
            with the gain is said at :func:`tandem_snn.training.start_from`.
        progressive, percentile, patience: convert the network layer by layer, in stages that share the epochs, each
            with a threshold from that percentile of the layer's activations; a stage also ends after ``patience``
            epochs without a better validation. See :class:`tandem_snn.training.Progressive`.
        optimizer, lr, momentum, weight_decay: "adam", "adamw" or "sgd", which alone has momentum. Weight decay spares
            parameters of fewer than two dimensions: biases and batch norm.
        schedule: of the learning rate. "one-cycle" rises over the first tenth of the steps and then falls to zero as a
            cosine, "cosine" only falls, "multistep" is multiplied by ``lr_factor`` at each epoch of ``milestones``,
            "constant".
        label_smoothing: of the cross-entropy, 0 to 1.
        synops_penalty: weight in the loss of the synaptic operations in units of the ANN's, see
            :class:`tandem_snn.measure.synops_penalty`.
        clip_grad_norm: the greatest norm of the gradient; None leaves it as it is.
        epochs, batch_size: passes over the training samples, and samples per step of all processes together.
        precision: "fp32", or "bf16" and "fp16" for automatic mixed precision.
        seed: of the initial weights, the order of the samples, augmentation and dropout.
        seeds: how many runs a comparison consists of; their seeds count up from ``seed``.

    Raises:
        UserError: an unknown name, a value of a wrong kind or out of range.

    >>> Recipe(model="mlp", T=4).T
    4
    """

    data: str = "digits"
    task: str = "classification"
    augment: tuple[str, ...] = ()
    bins: str = "time"
    size: int | None = None
    validation: bool = True
    model: str = "cnn"
    T: int = 8
    width: float = 1.0
    encoding: str | None = None
    dropout: float | None = None
    norm: bool | None = None
    gamma: float | None = None
    threshold: float | None = None
    learn_threshold: str | None = None
    leak: float | None = None
    gate: str | None = None
    v_init: float | None = None
    weight_bits: int | None = None
    ann_units: bool | None = None
    timing: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    init_from: str | None = None
    init_gain: float = 1.0
    progressive: bool = False
    percentile: float = 99.9
    patience: int | None = None
    optimizer: str = "adam"
    lr: float = 2e-3
    momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "one-cycle"
    milestones: tuple[int, ...] = ()
    lr_factor: float = 0.1
    label_smoothing: float = 0.0
    synops_penalty: float = 0.0
    clip_grad_norm: float | None = None
    epochs: int = 30
    batch_size: int = 64
    precision: str = "fp32"
    seed: int = 0
    seeds: int = 1

    def __post_init__(self) -> None:
        for key in fields(self):
            object.__setattr__(self, key.name, _typed(key.name, str(key.type), getattr(self, key.name)))
        check_name("data set", self.data, NAMES)
        check_model(self.model)
        check_name("task", self.task, TASKS)
        check_name("optimizer", self.optimizer, OPTIMIZERS)
        check_name("schedule", self.schedule, SCHEDULES)
        check_name("precision", self.precision, PRECISIONS)
        check_name("gate", self.gate or "relu", GATES)
        check_name("timing", self.timing or "step", TIMINGS)
        check_name("encoding", self.encoding or "direct", MODES)
        check_name("kind of bins", self.bins, BINS)
        parse(self.augment)
        if self.seed + self.seeds > _GREATEST_SEED:
            raise UserError(f"seed, seeds: expected seeds up to {_GREATEST_SEED}, got {self.seed + self.seeds - 1}")
        if not 1 <= self.T <= 255:
            raise UserError(f"T: expected 1 to 255 time steps, got {self.T}")
        for name in _POSITIVE:
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise UserError(f"{name}: expected a positive number, got {value}")
        for name in ("weight_decay", "synops_penalty", "seed"):
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"{name}: expected 0 or more, got {getattr(self, name)}")
        for name in ("momentum", "label_smoothing", "dropout"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < 1:
                raise UserError(f"{name}: expected 0 or more and less than 1, got {value}")
        if self.leak is not None and not 0 < self.leak <= 1:
            raise UserError(f"leak: expected more than 0 and at most 1, got {self.leak}")
        if self.init_from not in (None, TWIN) and not str(self.init_from).endswith(".safetensors"):
            raise UserError(f"init_from: expected {TWIN!r} or a checkpoint's .safetensors file, got {self.init_from!r}")
        if self.init_from is None and self.init_gain != 1:
            raise UserError("init_gain: without init_from there is nothing that it scales")
        if not 0 < self.percentile <= 100:
            raise UserError(f"percentile: expected more than 0 and at most 100, got {self.percentile}")
        if self.patience is not None and not (self.progressive and self.validation):
            raise UserError("patience: it ends stages of progressive training, by the validation split")
        if self.progressive and (self.init_gain != 1 or self.ann_units is False):
            raise UserError(
                "init_gain, ann_units: progressive training takes weights in the units of the ANN, as they are"
            )
        if self.v_init is not None and not math.isfinite(self.v_init):
            raise UserError(f"v_init: expected a finite number, got {self.v_init}")
        if list(self.milestones) != sorted(set(self.milestones)) or any(
            not 0 < m < self.epochs for m in self.milestones
        ):
            raise UserError(f"milestones: expected rising epochs from 1 to {self.epochs - 1}, got {self.milestones}")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """The inverse of :meth:`to_dict`."""
        known = [key.name for key in fields(cls)]
        for name in values:
            check_name("recipe key", name, known)
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """Every key, as JSON and YAML can hold it."""
        return asdict(self) | {"milestones": list(self.milestones), "augment": list(self.augment)}

    def override(self, settings: Iterable[str]) -> Recipe:
        """This recipe with settings "key=value", the values written as in YAML.

        ``options.eps=1e-3`` sets one of the options.

        >>> Recipe().override(["T=4", "lr=1e-3"]).lr
        0.001
        """
        values = self.to_dict()
        for setting in settings:
            name, equals, text = setting.partition("=")
            if not equals:
                raise UserError(f"--set {setting}: expected key=value")
            value = from_yaml(text, f"--set {name}")
            group, _, option = name.strip().partition(".")
            if option and group == "options":
                values["options"] = values["options"] | {option: value}
            else:
                values[name.strip()] = value
        return Recipe.from_dict(values)

    def digest(self) -> str:
        """A name for what the recipe says: other values give another.

        >>> Recipe(T=4).digest() == Recipe(T=8).digest()
        False
        """
        text = json.dumps(self.to_dict(), sort_keys=True)
        return f"{self.data}-{self.model}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def load(self, data_dir: str | PathLike[str] | None = None, workers: int = 0) -> Dataset:
        """The recipe's data, see :func:`tandem_snn.data.load`."""
        return load(
            self.data, data_dir, validation=self.validation, augment=self.augment, task=self.task, T=self.T,
            bins=self.bins, size=self.size, workers=workers,
        )  # fmt: skip

    def with_seed(self, seed: int) -> Recipe:
        """The recipe of one of its runs."""
        return replace(self, seed=seed, seeds=1)

    @property
    def all_seeds(self) -> range:
        return range(self.seed, self.seed + self.seeds)

    def order(self, twin: bool) -> Sequence[str]:
        """The kinds of networks that are trained, in turn. Where the spiking network starts from the twin, the twin is
        first, and afterwards it is trained on as long as the spiking network was.

        >>> Recipe(init_from="twin").order(twin=True)
        ('ANN', 'SNN', 'ANN continued')
        >>> Recipe(init_from="twin").order(twin=False)
        ('ANN', 'SNN')
        """
        if self.init_from == TWIN:
            return ("ANN", "SNN", CONTINUED) if twin else ("ANN", "SNN")
        return ("SNN", "ANN") if twin else ("SNN",)

    def of_twin(self) -> Recipe:
        """What determines the ANN twin's training: this recipe with the defaults of all that only neurons have. Recipes
        that differ in nothing else have the same twin.

        >>> Recipe(T=4, gamma=2).of_twin() == Recipe(T=8, leak=0.9).of_twin()
        True
        """
        ignored = NEURON_KEYS - {"T"} if self.data in EVENTS else NEURON_KEYS
        defaults: dict[str, Any] = {key.name: key.default for key in fields(self) if key.name in ignored}
        return replace(self, **defaults)

    def of(self, kind: str) -> Recipe:
        """What determines the training of one kind of network."""
        if kind == "SNN":
            return self
        return self.of_twin() if kind == "ANN" else replace(self.of_twin(), init_from=TWIN)

    def build(self, data: Dataset, kind: str = "SNN") -> nn.Module:
        """The network, kind "SNN", or its twin, other kinds, with the initial weights that torch's generator gives."""
        check_name("kind", kind, KINDS)
        chosen = {name: getattr(self, name) for name in MODEL_KEYS if getattr(self, name) is not None}
        events = data.kind == "events"
        encoding = chosen.setdefault("encoding", "events" if events else "direct")
        if (encoding == "events") != events:
            raise UserError(f"encoding: {encoding!r} does not suit data set {data.name!r}, which holds {data.kind}")
        if self.progressive:
            chosen["ann_units"] = True
        build = partial(
            create_model if kind == "SNN" else create_twin,
            self.model, shape=data.shape, classes=data.classes, T=self.T, width=self.width, **chosen, **self.options,
        )  # fmt: skip
        try:
            with torch.device("meta"):
                size = sum(p.nbytes for p in build().parameters())
            if size > memory.total():
                raise ValueError(f"its weights would take {size:,} bytes, and this machine has {memory.total():,}")
            return build()
        except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: a size beyond 64 bits
            raise UserError(f"model {self.model}: {str(error).splitlines()[0]}") from error


def folder_of(kind: str) -> str:
    """Of a kind's training.

    >>> folder_of(CONTINUED)
    'ann-continued'
    """
    return kind.lower().replace(" ", "-")


def _number(value: Any) -> Any:
    """A string that is a number, as that number: to YAML 1.1, 1e-3 is a string."""
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _is_collection(value: Any) -> bool:
    return isinstance(value, Iterable) and not isinstance(value, str)


def _typed(name: str, kind: str, value: Any) -> Any:
    """``value`` as the field's type, if it can be that."""
    if value is None and "None" in kind:
        return None
    if isinstance(value, int) and value.bit_length() > 64:
        raise UserError(f"{name}: a number of {value.bit_length()} bits")
    kind = kind.removesuffix(" | None")
    try:
        if kind == "float" and not isinstance(value, bool):
            return float(value)
        if kind == "int" and not isinstance(value, bool) and int(value) == float(value):
            return int(value)
        if kind.startswith("tuple") and not isinstance(value, str | Mapping):
            return tuple(_typed(name, kind[6:9], item) for item in value)
    except (TypeError, ValueError, OverflowError):
        pass
    if kind == "single" or (kind == "bool" and isinstance(value, bool)) or (kind == "str" and isinstance(value, str)):
        return value
    if kind.startswith("dict") and isinstance(value, Mapping) and not any(map(_is_collection, value.values())):
        return {str(key): _typed(str(key), "single", _number(item)) for key, item in value.items()}
    expected = {
        "float": "a number",
        "int": "a whole number",
        "bool": "true or false",
        "str": "a name",
        "tuple[int, ...]": "a list of whole numbers, such as [10, 20]",
        "tuple[str, ...]": "a list of names, such as [flip]",
        "dict[str, Any]": "a mapping of names to single values",
    }
    raise UserError(f"{name}: expected {expected[kind]}, got {value!r}")
