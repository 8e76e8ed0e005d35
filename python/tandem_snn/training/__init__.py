"""Training, in pieces that can be used on their own.

A :class:`Recipe` describes a training run. :func:`fit` runs it for one network, :func:`compare` for a network and its
ANN twin over several seeds. Below them, :class:`Trainer` takes single steps, :class:`Store` keeps a run on the disk,
and optimizers, learning rates, tasks and checkpoints are functions.
"""

from .checkpoint import Store, load_checkpoint, read_recipe, save_checkpoint
from .comparison import Comparison, compare
from .fit import Fitted, fit
from .measures import step_times
from .processes import Interruption, World, join, synchronised
from .recipe import Recipe, list_recipes, load_recipe
from .task import Classification, Regression, Task, learning_rate, make_optimizer, make_task
from .trainer import Trainer, evaluate
from .transfer import start_from

__all__ = [
    "Classification",
    "Comparison",
    "Fitted",
    "Interruption",
    "Recipe",
    "Regression",
    "Store",
    "Task",
    "Trainer",
    "World",
    "compare",
    "evaluate",
    "fit",
    "join",
    "learning_rate",
    "list_recipes",
    "load_checkpoint",
    "load_recipe",
    "make_optimizer",
    "make_task",
    "read_recipe",
    "save_checkpoint",
    "start_from",
    "step_times",
    "synchronised",
]
