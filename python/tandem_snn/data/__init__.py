"""Data sets by name, with fixed splits; batches are a pure function of seed, step and process.

Images stay uint8 in memory and become floating point batch by batch. Event recordings are binned into spike trains once
and kept in a cache on disk.
"""

from .binning import TrainDataset, from_tonic
from .catalogue import EVENTS, NAMES, load
from .dataset import TASKS, Dataset, DatasetSplit, as_dataset, as_split
from .split import AUGMENTATIONS, Split, TensorSplit

__all__ = [
    "AUGMENTATIONS",
    "EVENTS",
    "NAMES",
    "TASKS",
    "Dataset",
    "DatasetSplit",
    "Split",
    "TensorSplit",
    "TrainDataset",
    "as_dataset",
    "as_split",
    "from_tonic",
    "load",
]
