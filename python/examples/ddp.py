"""Train with several processes, each of which takes its share of every batch: NCCL on GPUs, gloo on the CPU.

torchrun --nproc-per-node 2 python/examples/ddp.py
"""

import argparse
import gc
import os
from collections.abc import Callable

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler

from train import accuracy, digits, spiking


def run(parallel: Callable[[nn.Sequential], nn.Module], epochs: int) -> None:
    """Train in this process, one of those that torchrun has started; ``parallel`` makes them share the network."""
    device = torch.device("cpu")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    torch.manual_seed(0)
    batches, images, labels = digits()
    sampler = DistributedSampler(batches.dataset)
    share = DataLoader(batches.dataset, 64 // dist.get_world_size(), sampler=sampler, drop_last=True)
    net = nn.SyncBatchNorm.convert_sync_batchnorm(spiking(T=8)).to(device)  # the statistics of whole batches
    shared = parallel(net)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        for x, y in share:
            loss = F.cross_entropy(shared(x.to(device)), y.to(device))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    right = accuracy(net, images.to(device), labels.to(device))  # in every process: it may have to gather weights
    if dist.get_rank() == 0:
        print(f"{dist.get_world_size()} processes on {device.type}: test accuracy {right:.2f} %")
    del shared
    gc.collect()  # the reducer before its group, or gloo may wait forever
    dist.destroy_process_group()


def arguments(description: str | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=10)
    return parser.parse_args()


if __name__ == "__main__":
    run(DistributedDataParallel, arguments(__doc__).epochs)
