"""A result: the summary of a run, under the name of its file, with the questions that tables and pictures ask it."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from tandem_snn.errors import UserError
from tandem_snn.training.recipe import Recipe

_ESSENTIAL = ("recipe", "T", "synops_ratio", "firing_rates", "energy_pj", "per_seed", "command", "commit", "machine",
              "samples")  # fmt: skip


@dataclass(frozen=True)
class Result:
    """The summary of a run, see :meth:`tandem_snn.training.Comparison.summary`, under the name of its file."""

    name: str
    summary: dict[str, Any]

    def __getitem__(self, key: str) -> Any:
        return self.summary[key]

    def get(self, key: str) -> Any:
        """None where the run has no such thing."""
        return self.summary.get(key)

    @cached_property
    def recipe(self) -> Recipe:
        return Recipe.from_dict(self.summary["recipe"])

    @property
    def metric(self) -> str:
        """ "accuracy", in percent, or "mse"."""
        return "accuracy" if self.recipe.task == "classification" else "mse"

    @property
    def value(self) -> float:
        """The metric on the test split, mean over the seeds."""
        return float(self[f"test_{self.metric}"])

    @property
    def twin(self) -> float | None:
        """The same of the ANN twin."""
        return self.get(f"ann_test_{self.metric}")

    @property
    def test_samples(self) -> int:
        return int(self["samples"]["test"])

    @property
    def continued(self) -> float | None:
        """The same of the twin that was trained on for as long as a network that started from it."""
        return self.get(f"ann_continued_test_{self.metric}")

    @property
    def over_time(self) -> list[float] | None:
        """The metric after each time step."""
        return self.get(f"test_{self.metric}_over_time")

    @cached_property
    def settings(self) -> str:
        """What the recipe says of its network other than the defaults, beside data, model and T; and by what other
        numbers of epochs it was trained before.
        """
        before = sorted({plan["epochs"] for seed in self["per_seed"] for plan in seed.get("trained_on", ())})
        return ", ".join([*filter(None, [_settings(self.recipe)]), *(f"trained on from {n} epochs" for n in before)])

    @cached_property
    def settings_at_any_T(self) -> str:
        """The same without the gain of the start, which follows T."""
        return _settings(replace(self.recipe, init_gain=1.0))

    @property
    def machine(self) -> str:
        """Where it ran, in words."""
        return ", ".join(f"{key} {value}" for key, value in self["machine"].items())

    def family(self) -> Recipe:
        """The recipe but for its seeds, T, and the start, which depends on T: results of one family differ in these."""
        return replace(self.recipe, T=1, init_gain=1.0, v_init=None, seed=0, seeds=1)


def _settings(recipe: Recipe) -> str:
    changed = []
    for key in fields(Recipe):
        value = getattr(recipe, key.name)
        default = {} if key.name == "options" else key.default
        described = key.metadata["model"] or key.metadata["neuron"] or key.name in ("width", "options")
        if described and key.name != "T" and value != default:
            changed.append(f"{key.name}={value:g}" if isinstance(value, float) else f"{key.name}={value}")
    return ", ".join(changed)


def read(path: Path) -> Result:
    """A result from its file.

    Raises:
        UserError: not JSON, or not the summary of a run.
    """
    try:
        summary = json.loads(path.read_text())
    except ValueError as error:
        raise UserError(f"{path} is not JSON: {error}") from error
    missing = [key for key in _ESSENTIAL if not isinstance(summary, dict) or key not in summary]
    if missing:
        raise UserError(f"{path} is not the summary of a run: it has no {', '.join(missing)}")
    return Result(path.stem, summary)
