"""Maximum pooling of trains and currents that is exact over the whole window, yet causal."""

from typing import Any

import torch
from torch import Tensor, nn

from tandem_ext import SpikeTrain
from tandem_ext.functional.products import laid_out
from tandem_ext.planes import pack

from .currents import AT_ONCE, Currents, currents_of


class MaxPool(nn.Module):
    """Maximum pooling of trains whose counts are exactly the largest counts in each pooling patch.

    A pooling patch spikes at step t if the largest count of its neurons so far grows, which is by one at most. So
    spikes are 0 or 1, and a step does not depend on later steps. ``tnn.MaxPool2d``, an OR of spikes, keeps no counts
    between steps, but its counts are too large if neurons take turns.

    Args:
        f: ``max_pool1d``, ``max_pool2d``, ``max_pool3d``, or with ``adaptive_`` before it.
        geometry: kernel_size, stride, padding, dilation and ceil_mode, or the output size, as in torch's function.

    Shape: SpikeTrain [B, C, *space] -> SpikeTrain [B, C, *space'], or tensors.

    >>> spikes = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).view(2, 1, 1, 2)  # two neurons that take turns
    >>> MaxPool("max_pool1d", 2)(te.SpikeTrain.from_dense(spikes)).counts.item()
    1.0
    """

    def __init__(self, f: str, *geometry: Any) -> None:
        super().__init__()
        self.f, self.geometry = f, geometry

    def forward(self, x: SpikeTrain | Tensor) -> SpikeTrain | Tensor:
        if isinstance(x, Tensor):
            return largest(self.f, x, *self.geometry)
        counts = None if x.edge is None else largest(self.f, x.edge, *self.geometry)
        with torch.no_grad():
            if x.timing == "window":
                stored = largest(self.f, x.stored[0].float(), *self.geometry).to(torch.uint8).unsqueeze(0)
            else:
                u = largest(self.f, x.replace(gain=1.0), *self.geometry)
                starts = range(0, x.T, AT_ONCE)
                stored = torch.cat([pack(u.steps(start, min(start + AT_ONCE, x.T))) for start in starts])
        offset = None if x.offset is None else largest(self.f, x.offset, *self.geometry)
        return x.replace(stored=stored, counts=counts, offset=offset)

    def extra_repr(self) -> str:
        return ", ".join(map(str, (self.f, *self.geometry)))


def largest(f: str, x: Any, *args: Any) -> Any:
    """Maximum pooling of currents: J[t] = M[t] - M[t-1], where M[t] is the largest Σ I up to t in a pooling patch.

    The sum over all steps is exactly the largest z, and a step does not depend on later steps.

    Args:
        f: the name of an operator of ``torch.ops.aten``, as in :class:`MaxPool`.
        x: a train, direct input, currents or tensor.
        args: the arguments of f after x.

    >>> spikes = torch.tensor([[0.0, 1.0], [1.0, 0.0]]).view(2, 1, 1, 2)  # two neurons that take turns
    >>> largest("max_pool1d", te.SpikeTrain.from_dense(spikes), 2).steps(0, 2).flatten()
    tensor([1., 0.])
    """
    operator = getattr(torch.ops.aten, f)

    def function(*args: Any) -> Tensor:
        y: Any = operator(*args)
        return y[0] if f.startswith("adaptive") else y  # without indices

    if isinstance(x, Tensor):
        return function(x, *args)
    u = currents_of(x)
    z = function(laid_out(u.total, u.total.dim() == 4), *args)
    if u.constant:
        return Currents(z, lambda start, stop: (z.detach() / u.T).unsqueeze(0), u.T, constant=True)
    before: dict[int, Tensor] = {}  # the sums of the currents before the steps that were requested last and come next

    def steps(start: int, stop: int) -> Tensor:
        if start not in before:
            earlier = (u.steps(t, t + AT_ONCE).sum(0) for t in range(0, start, AT_ONCE))
            before[start] = sum(earlier, torch.zeros_like(u.total))
        sums = torch.cat([before[start].unsqueeze(0), u.steps(start, stop)]).cumsum(0)
        for other in before.keys() - {start}:
            del before[other]
        before[stop] = sums[-1]
        most = function(sums.flatten(0, 1), *args).unflatten(0, (len(sums), -1))
        return most.diff(dim=0)

    return Currents(z, steps, u.T)
