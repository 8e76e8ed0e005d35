"""Import from and export to other simulators, layer by layer, with equivalent neurons."""

from .snntorch import from_snntorch, to_snntorch
from .spikingjelly import from_spikingjelly, to_spikingjelly

__all__ = ["from_snntorch", "from_spikingjelly", "to_snntorch", "to_spikingjelly"]
