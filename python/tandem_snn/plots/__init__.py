"""Pictures in one line: each function draws one pair of matplotlib's axes and returns it.

>>> train = te.SpikeTrain.from_dense((torch.rand(16, 1, 40) < 0.2).float())
>>> axes = tandem_snn.plots.raster(train)
>>> axes.figure.savefig("raster.png")
"""

from .inside import counts_against_activations, potentials, raster, rates

__all__ = ["counts_against_activations", "potentials", "raster", "rates"]
