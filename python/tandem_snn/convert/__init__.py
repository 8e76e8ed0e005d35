"""Convert ANNs to spiking networks and back, on the same Parameters, and calibrate thresholds."""

from .calibrate import calibrate
from .graph import CannotConvert
from .to_ann import to_ann
from .to_snn import convert

__all__ = ["CannotConvert", "calibrate", "convert", "to_ann"]
