"""A recipe: everything that determines a training run. The package's own are in recipes.yaml."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cache, partial
from os import PathLike
from pathlib import Path
from typing import Any, get_type_hints

import torch
from torch import nn

from tandem_ext.checks import GATES, MOST_STEPS, TIMINGS

from ..data import EVENTS, NAMES, TASKS, Dataset, load
from ..data.binning import BINS
from ..data.split import parse
from ..errors import UserError, check_name
from ..machine import total_memory
from ..models import check_model, create_model, create_twin
from ..nn.passing import MODES
from .keys import BELOW_1, FINITE, FROM_0, POSITIVE, above_0_to, check, from_yaml, key, typed, within

OPTIMIZERS = ("adam", "adamw", "sgd")
SCHEDULES = ("one-cycle", "cosine", "multistep", "constant")
PRECISIONS = ("fp32", "bf16", "fp16")
TWIN = "twin"  # a value of init_from
CONTINUED = "ANN continued"  # the control for a network that started from its twin: the twin, trained for as long
PREFIXES = {"SNN": "", "ANN": "ann_", CONTINUED: "ann_continued_"}  # of the keys in a summary
KINDS = tuple(PREFIXES)
_REMOVED = {"progressive": False, "percentile": 99.9, "patience": None}  # keys of earlier files, as most have them
_GREATEST_SEED = 2**63 - 1  # of torch's generators


@dataclass(frozen=True)
class Recipe:
    """A training run. Two runs of equal recipes on one machine's CPU end with bit-identical weights if they use the
    same number of threads: torch splits sums among its threads.

    Every key is also an option of ``tandem-snn train``: ``--synops-penalty 0.2``.

    Raises:
        UserError: an unknown name, a value of a wrong kind or out of range.

    >>> Recipe(model="mlp", T=4).T
    4
    """

    data: str = key("digits", "The data set's name, such as mnist.", NAMES)
    task: str = key("classification", "classification, or regression, with the images as their own targets.", TASKS)
    augment: tuple[str, ...] = key((), "Augmentations of the training images, in order: flip, shift, shift:PIXELS.")
    bins: str = key("time", "Frames of event recordings: time (equal length) or count (equal number of events).", BINS)
    size: int | None = key(None, "Height and width of the samples of recordings and streams.")
    validation: bool = key(
        True,
        "Hold a fixed part of the training samples out and keep the weights of the epoch that does best on it. Without "
        "it, train on everything and keep the weights of the last epoch.",
    )
    model: str = key("cnn", "The network's name, or its layers, such as 32C3-FC256.")
    T: int = key(
        8,
        "Number of time steps, 1 to 65535, or with timing window 255.",
        within(1, MOST_STEPS["step"], " time steps"),
        neuron=True,
    )
    width: float = key(1.0, "Multiplier of the model's channels.", POSITIVE)
    encoding: str | None = key(None, "How inputs become spikes; by default as the data need it.", MODES, model=True)
    dropout: float | None = key(None, "Share of the neurons that is dropped in training.", BELOW_1, model=True)
    norm: bool | None = key(None, "Batch norm.", model=True)
    gamma: float | None = key(None, "Initial scale of batch norm.", POSITIVE, model=True, neuron=True)
    threshold: float | None = key(None, "Firing threshold.", POSITIVE, model=True, neuron=True)
    learn_threshold: str | None = key(None, "Learn thresholds: layer or channel.", model=True, neuron=True)
    leak: float | None = key(
        None, "Share of the membrane potential that is left after a step.", above_0_to(1), model=True, neuron=True
    )
    gate: str | None = key(
        None,
        "Which neurons pass a gradient: relu (z > 0), clip (0 < z < threshold * T, the most that a count stands for), "
        "resu (as relu, and neurons with z <= 0 are silenced).",
        GATES,
        model=True,
        neuron=True,
    )
    first_gate: str | None = key(
        None, "Another gate for the first epochs: resu:7 trains the first seven with gate resu.", neuron=True
    )
    v_init: float | None = key(None, "Initial membrane potential, in thresholds.", FINITE, model=True, neuron=True)
    weight_bits: int | None = key(
        None, "Train with weights rounded to this many bits, 2 to 8.", model=True, neuron=True
    )
    ann_units: bool | None = key(
        None, "A spike counts as its threshold, so that activations keep the ANN's units.", model=True, neuron=True
    )
    timing: str | None = key(
        None,
        "When neurons fire: step, in each time step, or window, after the whole window of their input.",
        TIMINGS,
        model=True,
        neuron=True,
    )
    options: dict[str, Any] = key({}, "Further arguments of the model: --set options.NAME=VALUE.")
    init_from: str | None = key(
        None,
        "Start the spiking network from a trained one with the same layers: twin, the ANN that is trained first, or "
        "the path of a checkpoint.",
        neuron=True,
    )
    init_gain: float = key(1.0, "Scale of the activations of that network, see start_from.", POSITIVE, neuron=True)
    optimizer: str = key("adam", "adam, adamw or sgd.", OPTIMIZERS)
    lr: float = key(2e-3, "The (peak) learning rate.", POSITIVE)
    momentum: float = key(0.9, "Momentum of sgd.", BELOW_1)
    weight_decay: float = key(0.0, "Weight decay of the weights, not of biases and batch norm.", FROM_0)
    schedule: str = key(
        "one-cycle",
        "The learning rate: one-cycle rises over the first tenth of the steps, then falls to zero as a cosine; cosine "
        "only falls; multistep is multiplied by lr_factor at each milestone; constant.",
        SCHEDULES,
    )
    milestones: tuple[int, ...] = key((), "Epochs at which multistep lowers the learning rate: 10,20.")
    lr_factor: float = key(0.1, "Factor of the learning rate at each milestone.", POSITIVE)
    label_smoothing: float = key(0.0, "Label smoothing of the cross-entropy.", BELOW_1)
    synops_penalty: float = key(
        0.0, "Weight in the loss of the synaptic operations, in units of the ANN's.", FROM_0, neuron=True
    )
    clip_grad_norm: float | None = key(None, "The greatest norm of the gradient.", POSITIVE)
    epochs: int = key(30, "Passes over the training samples.", POSITIVE)
    batch_size: int = key(64, "Samples per training step, of all processes together.", POSITIVE)
    precision: str = key("fp32", "fp32, or bf16 and fp16 for automatic mixed precision.", PRECISIONS)
    seed: int = key(0, "The first seed, for initial weights, order of the samples, augmentation and dropout.", FROM_0)
    seeds: int = key(1, "Number of runs, whose seeds count up from the first.", POSITIVE)

    def __post_init__(self) -> None:
        hints = type_hints()
        for one in fields(self):
            value = typed(one.name, hints[one.name], getattr(self, one.name))
            object.__setattr__(self, one.name, value)
        for one in fields(self):
            check(one.name, one.metadata["allowed"], getattr(self, one.name))
        if self.timing is not None:
            check("T", within(1, MOST_STEPS[self.timing], f" time steps with timing {self.timing}"), self.T)
        check_model(self.model)
        parse(self.augment)
        if self.seed + self.seeds > _GREATEST_SEED:
            raise UserError(f"seed, seeds: expected seeds up to {_GREATEST_SEED}, got {self.seed + self.seeds - 1}")
        if self.init_from not in (None, TWIN) and not str(self.init_from).endswith(".safetensors"):
            raise UserError(f"init_from: expected {TWIN!r} or a checkpoint's .safetensors file, got {self.init_from!r}")
        if self.init_from is None and self.init_gain != 1:
            raise UserError("init_gain: needs init_from, the network whose activations it scales")
        if list(self.milestones) != sorted(set(self.milestones)) or any(
            not 0 < m < self.epochs for m in self.milestones
        ):
            raise UserError(f"milestones: expected rising epochs from 1 to {self.epochs - 1}, got {self.milestones}")

        self.first_gates()

    def first_gates(self) -> tuple[str, int] | None:
        """The gate of the first epochs and their number, if there is another gate for them.

        >>> Recipe(first_gate="resu:7", epochs=10).first_gates()
        ('resu', 7)
        """
        if self.first_gate is None:
            return None
        gate, _, epochs = self.first_gate.partition(":")
        if gate not in GATES or not epochs.isdecimal() or not 0 < int(epochs) < self.epochs:
            raise UserError(
                f"first_gate: expected GATE:EPOCHS with a gate of {', '.join(GATES)} and fewer epochs than the "
                f"{self.epochs} in all, got {self.first_gate!r}"
            )
        return gate, int(epochs)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Recipe:
        """The inverse of :meth:`to_dict`."""
        known = [one.name for one in fields(cls)]
        for name, value in values.items():
            if name not in _REMOVED:
                check_name("recipe key", name, known)
            elif value != _REMOVED[name]:
                raise UserError(f"{name}: progressive training, layer by layer, is no longer supported, got {value!r}")
        return cls(**{name: value for name, value in values.items() if name not in _REMOVED})

    def to_dict(self) -> dict[str, Any]:
        """Every key, as JSON and YAML can hold it."""
        return asdict(self) | {"milestones": list(self.milestones), "augment": list(self.augment)}

    def override(self, settings: Iterable[str] = (), **keys: Any) -> Recipe:
        """This recipe with settings "key=value", the values written as in YAML, and then with ``keys``.

        ``options.eps=1e-3`` sets one of the options.

        >>> Recipe().override(["T=4", "lr=1e-3"], seeds=3).lr
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
        return Recipe.from_dict(values | keys)

    def digest(self) -> str:
        """A name for the recipe's values: different values give different names.

        >>> Recipe(T=4).digest() == Recipe(T=8).digest()
        False
        """
        values = self.to_dict() | _REMOVED  # so that twins trained earlier are found
        if self.first_gate is None:
            del values["first_gate"]
        text = json.dumps(values, sort_keys=True)
        return f"{self.data}-{self.model}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"

    def load(self, data_dir: str | PathLike[str] | None = None, workers: int = 0) -> Dataset:
        """The recipe's data, see :func:`tandem_snn.data.load`."""
        return load(
            self.data, data_dir, validation=self.validation, augment=self.augment, task=self.task, T=self.T,
            bins=self.bins, size=self.size, workers=workers,
        )  # fmt: skip

    def with_seed(self, seed: int) -> Recipe:
        """The recipe of a single run, with this seed."""
        return replace(self, seed=seed, seeds=1)

    @property
    def all_seeds(self) -> range:
        return range(self.seed, self.seed + self.seeds)

    def order(self, twin: bool) -> Sequence[str]:
        """The kinds of networks, in the order of training. If the spiking network starts from the twin, the twin comes
        first; afterwards it is trained for as long again as the spiking network.

        >>> Recipe(init_from="twin").order(twin=True)
        ('ANN', 'SNN', 'ANN continued')
        >>> Recipe(init_from="twin").order(twin=False)
        ('ANN', 'SNN')
        """
        if self.init_from == TWIN:
            return ("ANN", "SNN", CONTINUED) if twin else ("ANN", "SNN")
        return ("SNN", "ANN") if twin else ("SNN",)

    def of_twin(self) -> Recipe:
        """The recipe of the ANN twin: this one with the defaults of all keys that the ANN ignores. Recipes that differ
        only in those keys have the same twin.

        >>> Recipe(T=4, gamma=2).of_twin() == Recipe(T=8, leak=0.9).of_twin()
        True
        """
        frames = {"T"} if self.data in EVENTS else set()  # event data need their number
        defaults: dict[str, Any] = {one.name: one.default for one in fields(self) if one.metadata["neuron"]}
        return replace(self, **{name: value for name, value in defaults.items() if name not in frames})

    def of(self, kind: str) -> Recipe:
        """The recipe of one kind of network."""
        if kind == "SNN":
            return self
        return self.of_twin() if kind == "ANN" else replace(self.of_twin(), init_from=TWIN)

    def build(self, data: Dataset, kind: str = "SNN") -> nn.Module:
        """The network (kind "SNN") or its twin (other kinds), initialised by torch's global generator."""
        check_name("kind", kind, KINDS)
        given = {one.name: getattr(self, one.name) for one in fields(self) if one.metadata["model"]}
        chosen = {name: value for name, value in given.items() if value is not None}
        events = data.kind == "events"
        encoding = chosen.setdefault("encoding", "events" if events else "direct")
        if (encoding == "events") != events:
            raise UserError(f"encoding: {encoding!r} does not fit data set {data.name!r}, which contains {data.kind}")
        build = partial(
            create_model if kind == "SNN" else create_twin,
            self.model, shape=data.shape, classes=data.classes, T=self.T, width=self.width, **chosen, **self.options,
        )  # fmt: skip
        try:
            with torch.device("meta"):
                size = sum(p.nbytes for p in build().parameters())
            if size > total_memory():
                raise ValueError(f"its weights would take {size:,} bytes, and this machine has {total_memory():,}")
            return build()
        except (TypeError, ValueError, RuntimeError) as error:  # RuntimeError: a size beyond 64 bits
            raise UserError(f"model {self.model}: {str(error).splitlines()[0]}") from error


@cache
def type_hints() -> dict[str, Any]:
    """The type of each key."""
    return get_type_hints(Recipe)


def folder_of(kind: str) -> str:
    """The folder name for the training of one kind of network."""
    return kind.lower().replace(" ", "-")


_PACKAGE = Path(__file__).with_name("recipes.yaml")


@cache
def _package() -> dict[str, dict[str, Any]]:
    """The package's recipes by name: their keys, and a description under ``about``."""
    return dict(sorted(_read(_PACKAGE).items()))


def list_recipes() -> list[str]:
    """The names of the recipes that come with the package.

    >>> "digits" in list_recipes()
    True
    """
    return list(_package())


def describe(name: str) -> str:
    """A short description of one of the package's recipes."""
    about: str = _package()[name]["about"]
    return about


def load_recipe(name: str | Path) -> Recipe:
    """A recipe by name, or from a YAML file.

    A file holds keys of :class:`Recipe`; missing keys have their defaults. ``base`` is another recipe whose keys come
    first: a name, or a path relative to the file.

    Args:
        name: one of :func:`list_recipes`, or a path, which has a slash or ends in .yaml.

    Raises:
        UserError: unknown name, no such file, not YAML, an unknown key.

    >>> load_recipe("digits").data
    'digits'
    """
    return Recipe.from_dict(_keys(str(name), Path(), ()))


def _keys(name: str, folder: Path, derived: tuple[str, ...]) -> dict[str, Any]:
    """The keys of a recipe and of its base."""
    if "/" in name or name.endswith((".yaml", ".yml")):
        path = folder / name
        what, folder = f"recipe {path}", path.parent
        keys = _read(path)
    else:
        check_name("recipe", name, list_recipes())
        what = f"recipe {name}"
        keys = {key: value for key, value in _package()[name].items() if key != "about"}
    if what in derived:
        raise UserError(f"{what}: its base refers to itself")
    base = keys.pop("base", None)
    if base is None:
        return keys
    if not isinstance(base, str):
        raise UserError(f"{what}: base: expected a recipe's name or path, got {base!r}")
    return _keys(base, folder, (*derived, what)) | keys


def _read(path: Path) -> dict[str, Any]:
    if path.exists() and not path.is_file():
        raise UserError(f"recipe {path} is not a file")
    try:
        keys = from_yaml(path.read_text(errors="replace"), f"recipe {path}")
    except OSError as error:
        raise UserError(f"recipe {path} cannot be read: {error.strerror}") from error
    keys = {} if keys is None else keys
    if not isinstance(keys, dict) or not all(isinstance(key, str) for key in keys):
        raise UserError(f"recipe {path}: expected lines `key: value`")
    return keys
