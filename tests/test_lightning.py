"""Lightning and accelerate as they are: batches of trains are moved, batched and counted."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

import tandem_ext as te
import tandem_snn.nn as tnn


def loader(workers=0):
    """Two classes by which half of the neurons fires."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 2
    rate = torch.where((torch.arange(12) < 6).long() == labels[:, None], 0.5, 0.1)
    spikes = (torch.rand(8, 60, 12, generator=generator) < rate).float()
    return DataLoader(
        [(te.SpikeTrain.from_dense(spikes[:, i : i + 1]), int(label)) for i, label in enumerate(labels)],
        batch_size=16, shuffle=True, num_workers=workers,
    )  # fmt: skip


def network():
    torch.manual_seed(0)
    return nn.Sequential(tnn.Encoder(8, mode="events"), tnn.Linear(12, 16, norm=True), tnn.Readout(16, 2))


def accuracy(net):
    net.eval()
    return sum((net(x).argmax(1) == y).sum().item() for x, y in loader()) / 60


def test_lightning(tmp_path):
    lightning = pytest.importorskip("lightning", reason="lightning is not installed")

    class Classifier(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = network()

        def training_step(self, batch, index):
            trains, labels = batch
            return nn.functional.cross_entropy(self.net(trains), labels)

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=1e-2)

    module = Classifier()
    silent = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = lightning.Trainer(max_epochs=5, accelerator="cpu", default_root_dir=tmp_path, **silent)
    trainer.fit(module, loader())
    assert accuracy(module.net) > 0.9
    again = Classifier.load_from_checkpoint(next(tmp_path.rglob("*.ckpt")))
    assert accuracy(again.net) == accuracy(module.net)


def test_accelerate():
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    net = network()
    accelerator = accelerate.Accelerator(cpu=True)
    net, optimizer, batches = accelerator.prepare(net, torch.optim.Adam(net.parameters(), lr=1e-2), loader())
    for _ in range(5):
        for trains, labels in batches:
            loss = nn.functional.cross_entropy(net(trains), labels)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
    assert accuracy(accelerator.unwrap_model(net)) > 0.9
