"""python/examples/cpp: a program without Python and torch gives the counts that Python gives."""

import os
import re
import shutil
import subprocess
from itertools import cycle
from pathlib import Path

import pytest
import torch
from heads import STRUCTURES, Heads
from networks import NETWORKS, average, dyadic, lif, own_counts, trained, with_own_T
from pages import ROOT, blocks
from test_currents import BLOCKS, Placed, network
from test_frozen_file import converted, events
from test_inputs import Two, given
from tokens import joins, transformer
from torch import Tensor

import tandem_ext as te
import tandem_snn as ts
import tandem_snn.nn as tnn
from tandem_snn.frozen.answers import named
from tandem_snn.frozen.instruction import FIRES
from tandem_snn.frozen.lowering import lower

EXAMPLE = ROOT / "python" / "examples" / "cpp"
PAGE = ROOT / "docs" / "howto" / "cpp.md"
pytest.importorskip("safetensors")


def rows(answer):
    """Of each sample the answers, (", name" or "", numbers)."""
    each = [(name and f", {name}", y.flatten(1)) for name, y in named(answer)]
    return [[(name, y[b]) for name, y in each] for b in range(len(each[0][1]))]


def text(frozen, x, answers=False):
    """What it prints: spikes of each layer with neurons, and the answers, layer by layer."""
    inputs, lines = x if isinstance(x, tuple) else (x,), []
    stages = lower(frozen.net, shapes=[tuple(each.shape[1:]) for each in inputs])

    def watch(number, _, y):
        stage = stages.stages[number]
        if isinstance(y, te.SpikeTrain) and stage.instruction.kind in FIRES:
            lines.append(f"layer {stage.name}: {int(y.counts.sum())} spikes")

    with torch.no_grad():
        answer = stages(*inputs, watch=watch)
    for i, sample in enumerate(rows(answer)):
        for name, row in sample:
            numbers = "".join(f" {value:.9g}" for value in row.tolist()) if answers else ""
            lines.append(f"sample {i}{name}: class {int(row.argmax())}{numbers}")
    return "\n".join(lines) + "\n"


def text_of_stream(frozen, x, follows):
    """What it prints with --follow: neurons that follow go on from sample to sample, others take T steps of each."""
    lines, inputs = [], x if isinstance(x, tuple) else (x,)
    for i in range(len(inputs[0])):
        each = tuple(part[i : i + 1] for part in inputs)
        sample, steps = each if isinstance(x, tuple) else each[0], []
        if not follows:
            frozen.reset()
            parts = (
                part.to_dense(torch.float32) if isinstance(part, te.SpikeTrain) else [part] * frozen.T for part in each
            )
            steps = list(zip(*parts, strict=True)) if isinstance(x, tuple) else next(parts)
        for t, answer in enumerate([frozen.settle(sample)[0]] if follows else map(frozen.step, steps), 1):
            taken, _, operations = frozen._stream.facts.flatten().tolist()
            spent = f"{taken} steps, {operations} operations" if follows else f"{t} steps"
            for name, row in rows(answer)[0]:
                numbers = "".join(f" {value:.9g}" for value in row.tolist())
                lines.append(f"sample {i}{name}: class {int(row.argmax())}{numbers}; {spent}")
    return "\n".join(lines) + "\n"


def digits():
    return torch.frombuffer(bytearray((EXAMPLE / "digits.f32").read_bytes()), dtype=torch.float32).view(-1, 1, 8, 8)


def test_the_example_s_expected_output_is_python_s():
    """The C++ tests compare the program's output with this file."""
    expected = (EXAMPLE / "digits.txt").read_text()
    assert text(ts.load(EXAMPLE / "digits.tandem"), digits()) == expected


def test_the_page_shows_the_code_of_the_example():
    code = "".join((EXAMPLE / "main.cpp").read_text().split())
    assert all("".join(shown.split()) in code for shown in blocks(PAGE, "cpp"))


@pytest.fixture(scope="module")
def classify(tmp_path_factory):
    """The example, by the commands of its page, with the kernels built in build/cmake-example."""
    if not shutil.which("cmake") or not shutil.which("ninja"):
        pytest.skip("cmake or ninja is not installed")
    folder = tmp_path_factory.mktemp("cpp")
    commands = next(code for code in blocks(PAGE, "text") if code.startswith("cmake"))
    commands = re.sub(r"\bPREFIX\b", f"{folder}/prefix", commands).replace("build/example", f"{folder}/example")
    commands = re.sub(r"(?<![-\w/])build(?= )", "build/cmake-example", commands)
    options = {"CMAKE_GENERATOR": "Ninja", "CMAKE_BUILD_PARALLEL_LEVEL": os.environ.get("MAX_JOBS", "2")}
    done = subprocess.run(
        ["bash", "-ec", commands], cwd=ROOT, env=os.environ | options, check=True, capture_output=True, text=True
    )
    assert done.stdout.endswith((EXAMPLE / "digits.txt").read_text())
    return folder / "example" / "classify"


def run(program, *arguments):
    return subprocess.run([program, *map(str, arguments)], capture_output=True, text=True, timeout=300)


def write(path, x):
    """Write an input as the example reads it: of spikes all steps of each sample."""
    values = x if isinstance(x, Tensor) else x.to_dense(torch.float32).transpose(0, 1)
    path.write_bytes(values.contiguous().numpy().tobytes())
    return path


def made_of(block):
    return lambda: (network(block, "step"), torch.rand(4, 3, 8, 8))


def heads():
    return Heads(STRUCTURES["nested"], "step"), torch.rand(4, 3, 8, 8)


def many_steps():
    return network(BLOCKS[0], "step", T=20), torch.rand(4, 3, 8, 8)


CURRENTS = [pytest.param(made_of(block), id=block.__name__) for block in BLOCKS]


def placed():
    return Placed("step"), torch.rand(4, 3, 9, 7)


def tokens():
    return transformer(tokens=8), torch.rand(4, 3, 16, 8)


@pytest.mark.slow
@pytest.mark.parametrize("given", [{}, {"mean": [0.5, 0.4, 0.3], "std": 0.25}])
def test_pixels(given, classify, tmp_path):
    """Nothing is a float there before the logits, so that weights may be any."""
    layers = tnn.Conv2d(3, 8, 3, padding=1, norm=True, timing="window"), tnn.AdaptiveAvgPool2d(1), tnn.Flatten()
    net = torch.nn.Sequential(tnn.Encoder(8, "pixels", **given), *layers, tnn.Readout(8, 5))
    x = torch.randint(0, 256, (9, 3, 8, 6)).byte()
    frozen = ts.freeze(trained(net, x), example=x)
    frozen.save(tmp_path / "net.tandem")
    (tmp_path / "x.f32").write_bytes(x.float().numpy().tobytes())
    done = run(classify, tmp_path / "net.tandem", tmp_path / "x.f32", "--answers")
    assert done.stdout == text(frozen, x, answers=True)
    followed = run(classify, tmp_path / "net.tandem", tmp_path / "x.f32", "--answers", "--follow")
    assert followed.stdout == text_of_stream(frozen, x, True)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [None, 4])
@pytest.mark.parametrize(
    "make", [lif, converted, events, average, heads, placed, tokens, joins, many_steps, *NETWORKS, *CURRENTS]
)
def test_networks(make, bits, timing, classify, tmp_path):
    """The sums of a first layer that reads real numbers, and of currents, are floats there and here: exact ones."""
    if make is tokens and timing == "step":
        pytest.skip("attention reads whole windows")
    net, x = make()
    net, x = dyadic(trained(net, x)), (x * 16).round() / 16 if isinstance(x, Tensor) else x
    if make is events:
        trained(net, x)  # spikes and counts alone: with any weights
    for layer in net.modules():
        if getattr(layer, "gain", None) == "threshold" and isinstance(layer.threshold, Tensor):
            layer.threshold = 2.0 ** layer.threshold.log2().round()
        if isinstance(layer, (tnn.SpikingLayer, tnn.AvgPool2d)):
            layer.timing = timing if layer.leak == 1 else "step"
    if timing == "window":
        with_own_T(net, cycle([16, None, 3]))
    frozen = ts.freeze(net, weight_bits=bits)
    if bits is not None:  # the steps are not dyadic: make the numbers so
        for name, grid in frozen.grids.items():
            grid.step.copy_(2.0 ** grid.step.log2().round())
            frozen.net.get_submodule(name).weight.data.copy_(grid.weight())
    frozen(x)
    frozen.save(tmp_path / "net.tandem")
    write(tmp_path / "x.f32", x)
    done = run(classify, tmp_path / "net.tandem", tmp_path / "x.f32", "--answers")
    assert done.stderr == ""
    counts = own_counts(frozen.net, x)[0]
    assert all(c.sum() > 0 for c in counts)
    assert done.stdout == text(frozen, x, answers=True)
    if timing == "step" or make is not lif:  # which has both timings
        followed = run(classify, tmp_path / "net.tandem", tmp_path / "x.f32", "--answers", "--follow")
        assert followed.stdout == text_of_stream(ts.load(tmp_path / "net.tandem"), x, timing == "window")


@pytest.mark.slow
@pytest.mark.parametrize("join", [True, False])
def test_several_inputs(join, timing, classify, tmp_path):
    modes = ("direct", "events") if timing == "window" else ("zero_expand", "events")
    net, x = Two(modes, timing, T=20, join=join), given(modes, T=20)
    x = ((x[0] * 16).round() / 16, x[1])
    frozen = ts.freeze(dyadic(trained(net, *x)), example=x)
    frozen.save(tmp_path / "net.tandem")
    files = [write(tmp_path / name, each) for name, each in zip("ab", x, strict=True)]
    done = run(classify, tmp_path / "net.tandem", *files, "--answers")
    assert (done.stderr, done.stdout) == ("", text(frozen, x, answers=True))
    followed = run(classify, tmp_path / "net.tandem", *files, "--answers", "--follow")
    assert followed.stdout == text_of_stream(frozen, x, timing == "window")
    assert "the network takes 2 inputs" in run(classify, tmp_path / "net.tandem", files[0]).stderr


TIMM = [
    "resnet18", "resnet34", "resnet26d", "resnet50", "resnetv2_50", "wide_resnet50_2", "vgg11", "vgg11_bn", "vgg16_bn",
    "resnext50_32x4d", "regnetx_002", "densenet121", "mobilenetv1_100", "mobilenetv2_100", "repvgg_a0", "dla34",
    "hrnet_w18", "xception41", "inception_v3", "selecsls42", "res2net50_26w_4s",
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_networks_of_timm(name, classify, tmp_path):
    """Its plain loops give as many spikes in every layer as torch does, whose products are rounded otherwise."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    ann, size = timm.create_model(name, pretrained=False, num_classes=10), 96 if name == "inception_v3" else 64
    x = torch.randn(2, 3, size, size)
    torch.optim.swa_utils.update_bn([torch.randn(4, 3, size, size) for _ in range(2)], ann)
    frozen = ts.freeze(ts.convert(ann.eval(), T=4, data=[x]))
    assert frozen.why_slow is None
    frozen.save(tmp_path / "net.tandem")
    (tmp_path / "x.f32").write_bytes(x.numpy().tobytes())
    ours, theirs = (
        [line for line in shown.splitlines() if line.startswith("layer")]
        for shown in (text(frozen, x), run(classify, tmp_path / "net.tandem", tmp_path / "x.f32").stdout)
    )
    assert ours == theirs
    assert len(ours) >= 10


@pytest.mark.slow
def test_the_readme_s_network(classify, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    for code in blocks(ROOT / "README.md", "python"):
        exec(code, names)
    Path("x.f32").write_bytes(names["images"].numpy().tobytes())
    done = run(classify, "net.tandem", "x.f32")
    assert done.stderr == ""
    assert [int(line.split()[-1]) for line in done.stdout.splitlines() if line.startswith("sample")] == (
        names["frozen"](names["images"]).argmax(1).tolist()
    )


@pytest.mark.slow
def test_files_that_are_not_ours(classify, tmp_path):
    content = (EXAMPLE / "digits.tandem").read_bytes()
    path, x = tmp_path / "net", EXAMPLE / "digits.f32"
    broken = [bytearray(content[:length]) for length in range(0, len(content), 997)]
    for position in range(0, len(content), 97):
        broken.append(bytearray(content))
        broken[-1][position] ^= 1 << (position % 8)
    for damaged in broken:
        path.write_bytes(damaged)
        done = run(classify, path, x)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    older = content.replace(b"tandem_snn frozen 2", b"tandem_snn frozen 3")
    path.write_bytes(older)
    assert "is not one of tandem_snn frozen 2" in run(classify, path, x).stderr
    assert run(classify, path).returncode == 2
    net, spikes = events()
    frozen = ts.freeze(net, T=11)
    with pytest.warns(UserWarning, match="cannot run a file without shape: call the frozen network on an input"):
        frozen.save(path)
    assert "call the frozen network before it is saved" in run(classify, path, x).stderr
    assert "cannot open" in run(classify, tmp_path / "none", x).stderr
    numbers = torch.frombuffer(bytearray(x.read_bytes()), dtype=torch.float32)
    numbers[64] = torch.nan
    numbers.numpy().tofile(tmp_path / "nan")
    before = (EXAMPLE / "digits.txt").read_text().splitlines()[-10:]
    lines = run(classify, EXAMPLE / "digits.tandem", tmp_path / "nan").stdout.splitlines()[-10:]
    assert lines == [before[0], "sample 1: no class, as a potential is not finite", *before[2:]]
    frozen(spikes)
    frozen.save(path)
    torch.full((spikes.T, *spikes.shape[1:]), 0.5).numpy().tofile(tmp_path / "half")
    assert "the network takes spikes, 0 or 1, not 0.5" in run(classify, path, tmp_path / "half").stderr
    short = tmp_path / "short"
    for size, reason in (4, "number of samples"), (3, "no whole float32s"):
        short.write_bytes(x.read_bytes()[:-size])
        assert reason in run(classify, EXAMPLE / "digits.tandem", short).stderr
