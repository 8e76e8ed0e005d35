"""Other people's tools drive networks as they drive ANNs: the same answers, or a refusal that says what is wrong."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn
from torch.utils.data import DataLoader

import tandem_ext as te
import tandem_snn.nn as tnn
from tandem_snn import ann, to_ann

pytestmark = pytest.mark.clients

SAMPLES, T = 33, 20  # three planes: not the batch
OPTIONS = {
    "plain": {}, "bf16": {"precision": "bf16-mixed"}, "float64": {"precision": "64-true"},
    "accumulation": {"accumulate_grad_batches": 2}, "clipping": {"gradient_clip_val": 0.5}, "swa": {},
    "sync batch norm": {"sync_batchnorm": True},
}  # fmt: skip


def network(layers=tnn):
    torch.manual_seed(0)
    return nn.Sequential(layers.Linear(12, 16, norm=True), layers.Linear(16, 16, norm=True), layers.Readout(16, 3))


def images(layers=tnn):
    torch.manual_seed(0)
    conv = layers.Conv2d(1, 8, 3, padding=1, norm=True)
    return nn.Sequential(layers.Encoder(T=8), conv, layers.Flatten(), layers.Readout(512, 3))


@pytest.fixture(scope="module")
def items():
    torch.manual_seed(1)
    x = te.SpikeTrain.from_dense((torch.rand(T, SAMPLES, 12) < 0.3).float())
    return [(x[i], torch.tensor(i % 3)) for i in range(SAMPLES)]


def loader(items, batch_size=11):
    return DataLoader(items, batch_size=batch_size)


@pytest.fixture(scope="module")
def pl():
    return pytest.importorskip("lightning.pytorch")


def module(pl, layers=tnn):
    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = network(layers)

        def step(self, batch):
            x, y = batch
            return F.cross_entropy(self.net(x if layers is tnn else x.counts).float(), y)

        def training_step(self, batch, i):
            loss = self.step(batch)
            self.log("train", loss, on_epoch=True)
            return loss

        def validation_step(self, batch, i):
            self.log("loss", self.step(batch))
            self.log("first", float(i == 0))  # weighted by the size of the batches

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.05)

    return Module()


def trainer(pl, epochs=3, **options):
    parts = ("checkpointing", "progress_bar", "model_summary")
    quiet = {"logger": False, **{f"enable_{part}": False for part in parts}}
    return pl.Trainer(max_epochs=epochs, accelerator="cpu", devices=1, **(quiet | options))


@pytest.mark.parametrize("make", [
    lambda x, y: [x, y], lambda x, y: {"spikes": x}, lambda x, y: x,
    lambda x, y: (y, te.ConstantInput(torch.rand(SAMPLES, 4), 8), te.ImpulseInput(torch.rand(SAMPLES, 4), 8)),
], ids=["list", "dict", "train", "inputs"])  # fmt: skip
@pytest.mark.filterwarnings("error")
def test_lightning_finds_the_batch_size(make, pl, items):
    extract = pytest.importorskip("lightning.pytorch.utilities.data").extract_batch_size
    assert extract(make(*torch.utils.data.default_collate(items))) == SAMPLES


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", OPTIONS)
def test_lightning_fits_and_validates(name, pl, items):
    net, twin = module(pl), module(pl, ann)
    steps = []
    for one in net, twin:
        before = trainer(pl).validate(one, loader(items), verbose=False)[0]["loss"]
        callbacks = [pl.callbacks.StochasticWeightAveraging(0.05, swa_epoch_start=1)] if name == "swa" else []
        driver = trainer(pl, callbacks=callbacks, **OPTIONS[name])
        driver.fit(one, loader(items), loader(items))
        (measured,) = driver.validate(one, loader(items, 32), verbose=False)
        assert measured["first"] == pytest.approx(32 / 33)  # a batch of 32 and one of 1, the mean over the samples
        assert measured["loss"] < before
        steps.append(driver.global_step)
    assert steps[0] == steps[1]
    assert net.state_dict().keys() == twin.state_dict().keys()


@pytest.mark.filterwarnings("ignore")
def test_lightning_resumes_from_a_checkpoint_bit_for_bit(pl, items, tmp_path):
    whole, half, resumed = (module(pl) for _ in range(3))
    trainer(pl, 4).fit(whole, loader(items), loader(items))
    driver = trainer(pl, 2)
    driver.fit(half, loader(items), loader(items))
    driver.save_checkpoint(tmp_path / "half.ckpt")
    trainer(pl, 4).fit(resumed, loader(items), loader(items), ckpt_path=tmp_path / "half.ckpt")
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict(), rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore")
def test_lightning_counts_flops_by_layer(pl):
    summaries = pytest.importorskip("lightning.pytorch.utilities.model_summary")

    def summary(layers):
        one = module(pl, layers)
        one.net, one.example_input_array = images(layers), torch.rand(4, 1, 8, 8)
        one.forward = one.net.forward
        found = summaries.ModelSummary(one, max_depth=2)
        return dict(zip(found.layer_names, zip(found.param_nums, found.flop_counts, strict=True), strict=True))

    assert summary(tnn) == summary(ann)


@pytest.fixture
def accelerator():
    accelerate = pytest.importorskip("accelerate")

    def make(**options):
        accelerate.state.AcceleratorState._reset_state(True)
        accelerate.state.GradientState._reset_state()
        return accelerate.Accelerator(cpu=True, **options)

    return make


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_accelerate_trains(precision, accelerator, items):
    accelerated = accelerator(mixed_precision=precision, gradient_accumulation_steps=2)
    net = network()
    optimizer = torch.optim.SGD(net.parameters(), 0.05)
    net, optimizer, batches = accelerated.prepare(net, optimizer, loader(items))
    losses, seen = [], 0
    for _ in range(4):
        for x, y in batches:
            with accelerated.accumulate(net):
                loss = F.cross_entropy(net(x), y)
                accelerated.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.item())
            seen += len(accelerated.gather_for_metrics((net(x), y))[0])
    assert seen == 4 * SAMPLES
    assert sum(losses[-3:]) < sum(losses[:3])


@pytest.mark.parametrize("first", ["train", "label"])
def test_accelerate_dispatches_tensors_only(first, accelerator, items):
    """It joins the batches of all processes before it splits them, and says that it cannot join trains."""
    utils = pytest.importorskip("accelerate.utils")
    ordered = items if first == "train" else [item[::-1] for item in items]
    configuration = utils.DataLoaderConfiguration(dispatch_batches=False)
    own = list(accelerator(dataloader_config=configuration).prepare(loader(ordered)))
    assert sum(len(batch[0]) for batch in own) == SAMPLES
    with pytest.raises(TypeError, match=r"tensors but got .*SpikeTrain"):
        utils.concatenate(own)


@pytest.mark.filterwarnings("ignore")
def test_accelerate_offloads_whole_layers(accelerator, items):
    """A layer reads its batch norm's parameters itself, so it has to have them: that is preload_module_classes."""
    accelerate = pytest.importorskip("accelerate")
    x, _ = torch.utils.data.default_collate(items)
    net, expected = network().eval(), network().eval()(x)
    accelerate.cpu_offload(net, torch.device("cpu"), preload_module_classes=["Linear"])
    assert torch.equal(net(x), expected)


def test_torchinfo_refuses_trains_and_takes_the_twin():
    torchinfo = pytest.importorskip("torchinfo")
    net, size = images().eval(), (1, 1, 8, 8)
    with pytest.raises(RuntimeError) as refusal:
        torchinfo.summary(net, size, verbose=0)
    assert "ConstantInput" in str(refusal.value.__cause__)
    found = torchinfo.summary(to_ann(net), size, verbose=0)
    assert found.total_params == sum(p.numel() for p in net.parameters())


def test_averaged_models_and_their_batch_norm(items):
    x, y = torch.utils.data.default_collate(items)
    for layers, data in (tnn, x), (ann, x.counts):
        net = network(layers)
        swa = AveragedModel(net)
        ema = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
        optimizer = torch.optim.SGD(net.parameters(), 0.05)
        for _ in range(2):
            optimizer.zero_grad()
            F.cross_entropy(net(data), y).backward()
            optimizer.step()
            swa.update_parameters(net)
            ema.update_parameters(net)
        update_bn([(data[:11], y), (data[11:], y)], swa)
        layer = swa.module[0]
        means = [F.linear(part, layer.weight, layer.bias).mean(0) for part in (x.counts[:11], x.counts[11:])]
        torch.testing.assert_close(layer.norm.running_mean, (means[0] + means[1]) / 2)
        assert layer.norm.num_batches_tracked == 2
        assert ema.eval()(data).isfinite().all()
