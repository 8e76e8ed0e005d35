"""``python -m tandem_snn`` prints :func:`tandem_snn.info.info`."""

from .info import info

print(info())
