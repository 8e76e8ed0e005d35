"""A recipe: everything that determines a training run, besides the seed."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from torch import nn

from ..data import NAMES, Dataset
from ..errors import UserError, check_name
from ..models import create_model, create_twin, list_models


@dataclass(frozen=True)
class Recipe:
    """A training run.

    Attributes:
        data, model: names, of :func:`tandem_snn.data.load` and :func:`tandem_snn.models.create_model`.
        T: the number of time steps.
        epochs, batch_size, lr: Adam with a learning rate that rises over the first tenth and then falls to zero.
        width: the model's multiplier of channels.

    Raises:
        UserError: an unknown name, a number out of range.
    """

    data: str = "digits"
    model: str = "cnn"
    T: int = 8
    epochs: int = 30
    batch_size: int = 64
    lr: float = 2e-3
    width: float = 1.0

    def __post_init__(self) -> None:
        check_name("data set", self.data, NAMES)
        check_name("model", self.model, list_models())
        if not 1 <= self.T <= 255:
            raise UserError(f"T: expected 1 to 255 time steps, got {self.T}")
        for name in ("epochs", "batch_size", "lr", "width"):
            if not getattr(self, name) > 0:
                raise UserError(f"{name}: expected a positive number, got {getattr(self, name)}")

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        """The inverse of :meth:`to_dict`."""
        known = [field.name for field in fields(cls)]
        for name in values:
            check_name("recipe key", name, known)
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def networks(self, data: Dataset) -> tuple[nn.Module, nn.Module]:
        """The spiking network and its ANN twin, freshly initialised."""
        options: dict[str, Any] = {"shape": data.shape, "classes": data.classes, "T": self.T, "width": self.width}
        return create_model(self.model, **options), create_twin(self.model, **options)
