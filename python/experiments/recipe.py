"""A recipe: everything that determines a training run. recipes.yaml holds recipes by name."""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_origin, get_type_hints

import yaml

RECIPES = Path(__file__).with_name("recipes.yaml")


def key(default: Any, help: str, *, choices: Sequence[str] | None = None, least: float | None = None) -> Any:
    """A field of :class:`Recipe`, which is also a key of recipes.yaml and an option of train.py."""
    return field(default=default, metadata={"help": help, "choices": choices, "least": least})


@dataclass(frozen=True)
class Recipe:
    """A training run. Two runs of one recipe on one machine's CPU end with bit-identical weights if they use the same
    number of threads.

    Raises:
        ValueError: a value of a wrong type, or out of range.

    >>> Recipe(model="mlp", T="4").T
    4
    """

    data: str = key("digits", "the data set, see data.py")
    task: str = key(
        "classification", "regression: the images are their own targets", choices=("classification", "regression")
    )
    augment: tuple[str, ...] = key((), "augmentations of training samples, in order: flip, shift (by 4), shift:PIXELS")
    size: int | None = key(None, "height and width to which event recordings and image files are down-sampled", least=1)
    validation: bool = key(
        True, "hold a fixed twelfth of the training samples out, and keep the weights of the epoch that does best on it"
    )
    model: str = key("cnn", "the network's name, or its layers, such as 32C3-FC256, see architectures.py")
    width: float = key(1.0, "multiplier of the channels", least=1e-3)
    T: int = key(8, "time steps", least=1)
    draw_T: tuple[int, ...] = key((), "time steps of which each training step draws its own: one network for all")
    encoding: str = key("direct", "of images: as real numbers, or exactly as pixels", choices=("direct", "pixels"))
    layer_T: tuple[str, ...] = key((), "T of single layers, with timing window, such as conv1:16")
    timing: str = key("step", "when neurons fire: in each step, or after the window", choices=("step", "window"))
    gate: str = key("clip", "which neurons pass a gradient: z > 0, or 0 < z < threshold * T", choices=("relu", "clip"))
    threshold: float | None = key(None, "firing threshold, the value of a spike; by default as T and timing need it")
    v_init: float | None = key(None, "initial potential in thresholds; by default 0, with timing window 0.5")
    leak: float = key(1.0, "share of the potential that is left after a step")
    learn_threshold: str | None = key(None, "learn the thresholds, each of", choices=("layer", "channel"))
    weight_bits: int | None = key(None, "train with weights rounded to this many bits, 2 to 8")
    norm: bool = key(True, "batch norm")
    init_from: str | None = key(None, "start the SNN from its trained ANN twin", choices=("twin",))
    twin: bool = key(True, "train the ANN twin too, and if the SNN starts from it, for as long again, as a control")
    softmax: bool = key(False, "train a ViT too: transformers with a softmax, layer norm and GELU, of the same size")
    optimizer: str = key("adam", "optimizer", choices=("adam", "sgd"))
    lr: float = key(2e-3, "the peak of the learning rate")
    schedule: str = key(
        "one-cycle", "rise over a tenth of the steps, then fall to zero as a cosine", choices=("one-cycle", "constant")
    )
    weight_decay: float = key(0.0, "decay of the weights alone, of the SNN and its twin", least=0)
    distill: float = key(0.0, "share of the trained twin's answers in the loss, also in that of the control", least=0)
    temperature: float = key(2.0, "by which the logits are divided to distil them", least=1e-3)
    synops_penalty: float = key(0.0, "weight of the synaptic operations, in units of the ANN's, in the loss", least=0)
    epochs: int = key(30, "passes over the training samples", least=1)
    batch_size: int = key(64, "samples per training step, of all processes together", least=1)
    precision: str = key("fp32", "bf16: automatic mixed precision", choices=("fp32", "bf16"))
    seed: int = key(0, "the first seed, of initial weights, order of samples, augmentation and dropout", least=0)
    seeds: int = key(1, "number of runs, whose seeds count up from the first", least=1)

    def __post_init__(self) -> None:
        for one in fields(self):
            value = _typed(one.name, getattr(self, one.name))
            choices, least = one.metadata["choices"], one.metadata["least"]
            if value is not None and choices is not None and value not in choices:
                raise ValueError(f"{one.name}: expected one of {', '.join(choices)}, got {value!r}")
            if value is not None and least is not None and not value >= least:
                raise ValueError(f"{one.name}: expected {least} or more, got {value}")
            object.__setattr__(self, one.name, value)
        if self.distill > (1.0 if self.task == "classification" else 0.0):
            raise ValueError(f"distill: expected 0 to 1, and 0 with task regression, got {self.distill}")
        if self.draw_T and self.threshold is not None:
            raise ValueError(f"threshold: with draw_T it is that of each T, expected none, got {self.threshold}")


_HINTS = get_type_hints(Recipe)


def _kind(name: str) -> tuple[Any, bool]:
    """The type of a key, and whether it may be None."""
    hint = _HINTS[name]
    return (get_args(hint)[0], True) if isinstance(hint, UnionType) else (hint, False)


def _typed(name: str, value: Any) -> Any:
    """The value in the type of a key; texts are read as numbers, since to YAML 1.1 2e-3 is a text."""
    kind, optional = _kind(name)
    if value is None and optional:
        return None
    try:
        if get_origin(kind) is tuple and not isinstance(value, str | Mapping):
            return tuple(map(get_args(kind)[0], value))
        if kind in (int, float) and not isinstance(value, bool) and kind(value) == float(value):
            return kind(value)
    except (TypeError, ValueError, OverflowError):
        pass
    if kind in (bool, str) and isinstance(value, kind):
        return value
    each = f"each {get_args(kind)[0].__name__}" if get_origin(kind) is tuple else kind.__name__
    raise ValueError(f"{name}: expected {each}, got {value!r}")


def load(name: str) -> dict[str, Any]:
    """The keys of a recipe, by its name in recipes.yaml or from a YAML file of its own, whose name ends in .yaml.

    The keys of the recipe that is named as ``base`` come first.

    Raises:
        ValueError: no such recipe, not YAML, or an unknown key.

    >>> load("digits")["timing"]
    'window'
    """
    if name.endswith((".yaml", ".yml")):
        keys = _read(Path(name))
    elif (recipes := _read(RECIPES)).get(name) is None:
        raise ValueError(f"unknown recipe {name!r}: expected a .yaml file or one of {', '.join(recipes)}")
    else:
        keys = recipes[name]
    unknown = keys.keys() - _HINTS.keys() - {"about", "base"}
    if unknown:
        raise ValueError(f"recipe {name}: unknown key {sorted(unknown)[0]!r} (known: {', '.join(_HINTS)})")
    base = keys.pop("base", None)
    return keys if base is None else load(base) | keys


def describe() -> dict[str, str]:
    """What recipes.yaml says about each recipe."""
    return {name: keys["about"] for name, keys in _read(RECIPES).items()}


def _read(path: Path) -> dict[str, Any]:
    try:
        keys = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ValueError(f"recipe {path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(keys, dict):
        raise ValueError(f"recipe {path}: expected lines `key: value`")
    return keys


def add_options(parser: argparse.ArgumentParser) -> None:
    """An option of the parser for each key of a recipe; only those that are given become attributes."""
    group = parser.add_argument_group("keys of the recipe, which replace its own")
    for one in fields(Recipe):
        kind, optional = _kind(one.name)
        flag = "--" + one.name.replace("_", "-")
        choices = one.metadata["choices"]
        text = one.metadata["help"] + (f": {', '.join(choices)}" if choices else "")
        if kind is bool:
            group.add_argument(flag, action=argparse.BooleanOptionalAction, default=argparse.SUPPRESS, help=text)
            continue
        several, read = "*" if get_origin(kind) is tuple else None, _or_none if optional else str
        group.add_argument(flag, nargs=several, type=read, default=argparse.SUPPRESS, help=text)


def _or_none(text: str) -> str | None:
    return None if text == "none" else text


def chosen(options: argparse.Namespace) -> Recipe:
    """The recipe that the parsed ``options.recipe`` names, with the keys that are given."""
    keys = load(options.recipe) | {name: value for name, value in vars(options).items() if name in _HINTS}
    return Recipe(**{name: value for name, value in keys.items() if name != "about"})
