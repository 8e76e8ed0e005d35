"""An estimate of the energy that a network's operations take."""

from __future__ import annotations

from dataclasses import dataclass

from .operations import SynOps

MAC_PJ = 4.6  # a 32-bit floating-point multiplication, 3.7 pJ, and addition, 0.9 pJ
AC_PJ = 0.9  # a 32-bit floating-point addition


@dataclass(frozen=True)
class Energy:
    """Picojoules per sample.

    Attributes:
        snn: of the network.
        ann: of its ANN twin.
    """

    snn: float
    ann: float

    @property
    def ratio(self) -> float:
        """snn / ann."""
        return self.snn / self.ann


def energy(ops: SynOps, *, mac: float = MAC_PJ, ac: float = AC_PJ) -> Energy:
    """What a network's arithmetic takes per sample, an estimate.

        E = mac · MACs + ac · ACs

    The defaults are those of 32-bit floating point in a 45 nm process at 0.9 V (M. Horowitz, "Computing's energy
    problem", ISSCC 2014), on which the field's comparisons agree. They leave out memory, which takes far more than
    arithmetic on most machines, the neurons' own updates, and whatever hardware for spikes saves or spends: compare
    networks with them, not machines.

    Args:
        ops: what :func:`synops` counted.
        mac, ac: picojoules per multiply-accumulate and per accumulate; for 32-bit integers 3.2 and 0.1.

    >>> from tandem_snn.measure import LayerOps, SynOps
    >>> energy(SynOps({"fc": LayerOps(ann_macs=10.0, macs=0.0, acs=6.0)}))
    Energy(snn=5.4, ann=46.0)
    """
    macs = sum(layer.macs for layer in ops.layers.values())
    acs = sum(layer.acs for layer in ops.layers.values())
    return Energy(snn=mac * macs + ac * acs, ann=mac * ops.ann)
