"""The same bits whatever the instruction set and the number of threads."""

import hashlib
import os
import subprocess
import sys

import pytest
import torch
from cases import DTYPES, bursts, train, train_with_edge

import tandem_ext as te

f = te.functional
CAPABILITIES = ("default", "v3", "v4")


def results():
    """Layers on numbers that are not dyadic, sizes with remainders and with work for two threads."""
    torch.manual_seed(0)
    for dtype in DTYPES:
        random = lambda *shape: torch.randn(*shape).to(dtype)  # noqa: B023, E731
        x, image = train_with_edge(9, 33, 203, dtype=dtype), train(9, 3, 13, 11, 10)
        weight, kernel = random(301, 203).requires_grad_(), random(21, 13, 3, 3).requires_grad_()
        shift = torch.randn(301)
        layers = [
            f.if_scan(random(9, 33, 30011), leak=0.9, return_v=True),
            f.if_scan(te.ConstantInput(random(33, 301), 9), threshold=0.3),
            f.linear_if(x, weight, shift=shift, residual=train(9, 33, 301, gain=0.3), return_v=True),
            f.linear_if(x, weight.detach(), shift=shift, gate="clip"),
            f.conv2d_if(image, kernel, padding=1, stride=2, return_v=True),
            f.linear_bn_if(x, weight),
            f.conv2d_bn_if(image, kernel, padding=1),
            f.linear_if(bursts(9, 33, 203), weight, shift=shift, timing="window", return_v=True),
            f.conv2d_bn_if(image, kernel, padding=1, timing="window"),
        ]
        for layer in layers:
            parts = layer if isinstance(layer, tuple) else (layer,)
            for part in parts:
                part = part[0] if isinstance(part, tuple) else part
                yield from (part.planes, part.counts.detach()) if isinstance(part, te.SpikeTrain) else (part,)
        y = layers[2][0]
        for mask in (torch.randint(0, 256, ((y.counts.numel() + 7) // 8,), dtype=torch.uint8),):
            yield torch.ops.tandem.gate_grad(torch.randn_like(y.counts), mask, 0.3)
        dense = y.to_dense()
        yield from (dense, te.pack(dense), te.counts(y.planes))


def digest():
    total = hashlib.sha256()
    for tensor in results():
        total.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def run(**environment):
    """The digest and the capability in use, in a process of its own."""
    path = os.pathsep.join([os.path.dirname(__file__), os.path.dirname(te.__path__[0])])
    output = subprocess.run(
        [sys.executable, "-c", "import test_determinism as t; print(t.te.build_info()['cpu_capability'], t.digest())"],
        env=os.environ | {"PYTHONPATH": path} | environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return output.stdout.split()


@pytest.fixture(scope="module")
def expected():
    return run()


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_instruction_set_gives_the_same_bits(capability, expected):
    best, bits = expected
    if CAPABILITIES.index(capability) > CAPABILITIES.index(best):
        pytest.skip(f"this machine has no {capability}")
    assert run(TANDEM_CPU_CAPABILITY=capability) == [capability, bits]


def test_an_unknown_instruction_set_is_refused():
    with pytest.raises(subprocess.CalledProcessError) as error:
        run(TANDEM_CPU_CAPABILITY="v5")
    assert "v5" in error.value.stderr


@pytest.mark.parametrize("path", ["lists", "digits"])
def test_every_way_gives_the_same_bits(path, expected):
    try:
        assert run(TANDEM_PATH=path) == expected
    except subprocess.CalledProcessError as error:
        if f"TANDEM_PATH={path}: this processor has no" not in error.stderr:
            raise
        pytest.skip(error.stderr.splitlines()[-1])


@pytest.mark.parametrize(
    ("path", "words"), [("lisst", "allowed are lists, digits"), ("digits", "no products of bytes")]
)
def test_a_way_that_does_not_exist_is_refused(path, words):
    with pytest.raises(subprocess.CalledProcessError) as error:
        run(TANDEM_PATH=path, TANDEM_CPU_CAPABILITY="default")
    assert f"TANDEM_PATH={path}: " in error.value.stderr
    assert words in error.value.stderr


def test_any_number_of_threads_gives_the_same_bits(expected):
    threads = torch.get_num_threads()
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            assert digest() == expected[1]
    finally:
        torch.set_num_threads(threads)
