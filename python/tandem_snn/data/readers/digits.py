"""scikit-learn's handwritten digits: 1,797 images of 8×8 with 17 levels of grey."""

from __future__ import annotations

import torch

from ...errors import extra
from .parts import Images, Part

CLASSES = tuple("0123456789")


def read() -> Images:
    """A fixed stratified quarter is the test set."""
    purpose = "the data set digits"
    digits = extra("sklearn.datasets", purpose).load_digits()
    chosen = extra("sklearn.model_selection", purpose).train_test_split(
        range(len(digits.target)), test_size=0.25, random_state=0, stratify=digits.target
    )
    images = torch.from_numpy(digits.images).to(torch.uint8).unsqueeze(1)
    targets = torch.from_numpy(digits.target).long()
    train, test = (Part(images[part], targets[part]) for part in chosen)
    return Images(train, test, CLASSES, white=16)
