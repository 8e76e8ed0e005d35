"""Training, in pieces that can be taken singly: an epoch, a fit, checkpoints, the comparison with the ANN twin."""

from .checkpoint import load_checkpoint, save_checkpoint
from .comparison import Comparison, compare
from .loop import Epoch, accuracy, fit, train_epoch
from .recipe import Recipe
from .timing import step_times

__all__ = [
    "Comparison",
    "Epoch",
    "Recipe",
    "accuracy",
    "compare",
    "fit",
    "load_checkpoint",
    "save_checkpoint",
    "step_times",
    "train_epoch",
]
