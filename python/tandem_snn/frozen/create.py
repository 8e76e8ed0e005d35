"""freeze() and load() make a FrozenNetwork, of a module or of a file."""

import warnings
from os import PathLike
from typing import Any

from torch import Tensor, nn

from tandem_ext import SpikeTrain

from ..nn.hooks import FIRING, SYNAPTIC, check_layers
from ..nn.quantise import check_bits
from ..nn.signals import batches, check_network
from .network import FrozenNetwork
from .program import read
from .stages import Stages


def freeze(
    net: nn.Module,
    weight_bits: int | None = None,
    *,
    T: int | None = None,
    example: Tensor | SpikeTrain | tuple[Tensor | SpikeTrain, ...] | None = None,
) -> FrozenNetwork:
    """Freeze a network for inference: a snapshot in evaluation mode that runs as a single call.

    Batch norm is folded into scale and shift, weights are packed once, and no Python runs between the layers. Sums over
    spikes are exact integers. So the answer is bit-identical to that of the network in evaluation mode, for any number
    of threads and any processor, and :meth:`FrozenNetwork.step` reaches it step by step. A sample's answer does not
    depend on its batch, except that torch may round the product of a real-valued input differently for other batch
    sizes. A network that has no program (because of other modules between the layers, forward hooks or float64 weights)
    runs layer by layer, and so does one in bfloat16 with T above 256 or in float16 with T above 2,048, since these
    types cannot represent larger counts; a warning and the ``repr`` say why. Under torch.autocast it computes in the
    type of its weights, as without. On a GPU the kernels run as one CUDA graph for each batch shape, of which the
    latest eight are kept, and multiply float32 weights as the same integers.

    Args:
        net: a network of this package's layers that ends in a Readout, in any mode; it is not changed. Without what
            torch.compile, DataParallel, DistributedDataParallel and AveragedModel put around it.
        weight_bits: round the weights symmetrically to 2 to 8 bits: integers times one quantisation step per output
            channel, see ``grids``. None: round only layers that have ``weight_bits`` themselves. Those that have others
            are rounded again, with a warning.
        T: the number of time steps; needed for a network without Encoder that has default thresholds, or streams
            before it has seen a train.
        example: an input, of any batch size, or a tuple of several. Layers that move features need its shape to become
            part of the one call: transposed convolutions, upsampling, other padding than zeros, and Linear on tokens.
            Networks of :func:`convert` with an example have one.

    Returns:
        A FrozenNetwork.

    Raises:
        TypeError: net is not a module, weight_bits or T is not an int, or example has not as many inputs as net.
        ValueError: net has no layers of this package or ends in spikes; weight_bits or T is out of range; net does not
            accept the example; weight_bits is given, but no layer can be rounded; or a weight, scale, threshold or
            statistic is not finite or has no values (the message names the layer).

    >>> net = nn.Sequential(tnn.Encoder(T=8), tnn.Linear(6, 5, norm=True), tnn.Linear(5, 5), tnn.Readout(5, 3)).eval()
    >>> x = torch.rand(4, 6)
    >>> torch.equal(freeze(net)(x), net(x))
    True
    """
    net = check_network("net", net)
    if isinstance(net, FrozenNetwork):
        return freeze(net.net, weight_bits, T=net.T if T is None else T, example=example)
    check_bits(weight_bits)
    if isinstance(net, Stages):
        if weight_bits is not None:
            raise ValueError("weight_bits: net has no layer to round: freeze the original of a network from a file")
    else:
        check_layers(net, (*SYNAPTIC, *FIRING))
    own: set[Any] = {getattr(layer, "weight_bits", None) for layer in net.modules()} - {None, weight_bits}
    if own and weight_bits is not None:
        what = f"weight_bits={weight_bits} replaces {min(own)} bits, with which a layer was trained"
        warnings.warn(f"freeze: {what}", stacklevel=2)
    frozen = FrozenNetwork(net, weight_bits, T, None if example is None else batches(example))
    layers = frozen._program_for(1.0).layers
    if isinstance(layers, Stages) and layers.fired is not None:
        last = f"its last layer, {layers.fired!r}, gives spikes"
        raise ValueError(f"net: expected a network that ends in a Readout or in mean counts: {last}")
    if frozen.why_slow is not None:
        warnings.warn(f"freeze: the network runs layer by layer, which takes longer: {frozen.why_slow}", stacklevel=2)
    return frozen


def load(path: str | PathLike[str]) -> FrozenNetwork:
    """Load a frozen network from a file of :meth:`FrozenNetwork.save`, with bit-identical answers.

    The file may be untrusted: it contains no code, sizes are checked before memory is allocated, and the checksum and
    every setting of every layer are checked. The cost of running its layers is not limited.

    Args:
        path: the file.

    Raises:
        UserError: the file does not exist, is not a frozen network, is damaged, has another version of the format, or
            its network is not valid. It is a ValueError.

    >>> net = nn.Sequential(tnn.Encoder(T=8), tnn.Linear(6, 5), tnn.Readout(5, 3))
    >>> x, frozen = torch.rand(4, 6), freeze(net, weight_bits=4)
    >>> frozen.save("net.tandem")
    >>> torch.equal(load("net.tandem")(x), frozen(x))
    True
    """
    stages, metadata = read(path)
    frozen = FrozenNetwork(stages, metadata.weight_bits, metadata.T)
    frozen._shapes = metadata.shapes
    return frozen
