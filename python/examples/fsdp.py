"""Train as ddp.py does, but each process keeps only its share of every weight (FSDP2).

torchrun --nproc-per-node 2 python/examples/fsdp.py
"""

from ddp import arguments, run
from torch import nn
from torch.distributed.fsdp import fully_shard


def shard(net: nn.Sequential) -> nn.Module:
    """Shard each layer, which gathers its weights when it runs, and what is left of the network."""
    for layer in (*net, net):
        fully_shard(layer)
    return net


if __name__ == "__main__":
    run(shard, arguments(__doc__).epochs)
