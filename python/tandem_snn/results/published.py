"""Figures from the literature, to be read beside our own."""

from __future__ import annotations

from dataclasses import dataclass

RECALLED = "recalled from memory of the paper, not read again"
THIRD_PARTY = "from a third party's table"


@dataclass(frozen=True)
class Published:
    """One figure.

    Attributes:
        data: our names of the data sets to whose results it belongs.
        value: as published: accuracy in percent, or what ``what`` says.
        source: the work.
        trust: how it came here.
    """

    data: tuple[str, ...]
    what: str
    value: float
    source: str
    trust: str


_CIFAR10 = ("cifar10", "cifar10-jpeg")
_TANDEM = "Wu et al., tandem learning, TNNLS 2021"
_LTL = "Yang et al., local tandem learning, NeurIPS 2022"
_PTL = "Wu et al., progressive tandem learning, TPAMI 2022"

PUBLISHED = (
    Published(_CIFAR10, "CifarNet, IF, T=8, accuracy", 90.98, _TANDEM, RECALLED),
    Published(_CIFAR10, "CifarNet, LIF, T=8, accuracy", 89.04, _TANDEM, f"{RECALLED}; little trust"),
    Published(_CIFAR10, "CifarNet as an ANN, accuracy", 91.77, _TANDEM, RECALLED),
    Published(_CIFAR10, "CifarNet, synaptic operations SNN / ANN", 0.32, _TANDEM, f"{RECALLED}; little trust"),
    Published(_CIFAR10, "AlexNet, T=16, accuracy", 90.86, _PTL, RECALLED),
    Published(_CIFAR10, "VGG-11, T=16, accuracy", 91.24, _PTL, RECALLED),
    Published(_CIFAR10, "VGG-11, T=16, accuracy", 93.20, _LTL, THIRD_PARTY),
    Published(("n-mnist",), "all of N-MNIST, IF, accuracy", 99.31, _TANDEM, f"{RECALLED}; little trust"),
    Published(("n-mnist",), "all of N-MNIST, LIF, accuracy", 99.22, _TANDEM, f"{RECALLED}; little trust"),
    Published(
        ("mnist",), "autoencoder, T=32, squared error summed over an image", 20.74, _TANDEM, f"{RECALLED}; little trust"
    ),
)
