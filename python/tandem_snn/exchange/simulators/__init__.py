"""Networks of other simulators as ours, and ours as theirs: layer by layer, with the neurons' exact meaning."""

from .snntorch import from_snntorch, to_snntorch
from .spikingjelly import from_spikingjelly, to_spikingjelly

__all__ = ["from_snntorch", "from_spikingjelly", "to_snntorch", "to_spikingjelly"]
