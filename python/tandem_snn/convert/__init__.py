"""Between ANNs and spiking networks: the same Parameters, seen either way."""

from .calibrate import calibrate
from .graph import CannotConvert
from .to_ann import to_ann
from .to_snn import convert

__all__ = ["CannotConvert", "calibrate", "convert", "to_ann"]
