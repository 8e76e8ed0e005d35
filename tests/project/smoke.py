"""Does an installed package work? Needs nothing but torch and numpy: python tests/project/smoke.py, from any folder."""

import sys
from importlib import metadata

import torch

import tandem_ext as te
import tandem_snn as ts
import tandem_snn.nn as tnn
from tandem_snn.info import info


def dyadic(*shape):
    """Numbers of which every sum is exact."""
    return torch.randint(-64, 65, shape) / 64


assert te.__version__ == metadata.version("tandem_ext"), (te.__version__, metadata.version("tandem_ext"))
torch.manual_seed(0)

x = te.SpikeTrain.from_dense((torch.rand(8, 4, 24) < 0.3).float())
weight, bias = dyadic(16, 24), dyadic(16)
assert torch.equal(te.functional.linear_if(x, weight, bias).planes, te.reference.linear_if(x, weight, bias).planes)
image = te.SpikeTrain.from_dense((torch.rand(8, 2, 3, 9, 9) < 0.3).float())
kernel = dyadic(8, 3, 3, 3)
ours, theirs = (module.conv2d_if(image, kernel, stride=2) for module in (te.functional, te.reference))
assert torch.equal(ours.planes, theirs.planes)

net = torch.nn.Sequential(
    tnn.Encoder(8), tnn.Conv2d(1, 4, 3, norm=True), tnn.Residual(tnn.Conv2d(4, 4, 3, padding=1, norm=True)),
    tnn.Flatten(), tnn.Readout(4 * 36, 10),
)  # fmt: skip
images = torch.rand(6, 1, 8, 8)
torch.nn.functional.cross_entropy(net(images), torch.arange(6)).backward()
assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
net.eval()
with torch.no_grad():
    assert torch.equal(ts.freeze(net)(images), net(images))
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images), net(images))
assert str(te.build_info()["compiler"]) in info()

print(f"tandem_ext {te.__version__}, Python {sys.version.split()[0]}, torch {torch.__version__}, {te.build_info()}")
