"""The same bits for any instruction set, way and number of threads; ops called at once, after fork, under signals."""

import gc
import hashlib
import os
import signal
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import child
import pytest
import torch
from cases import DTYPES, assert_same, bursts, dyadic, train, train_with_edge
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader, Dataset

import tandem_ext as te
import tandem_snn as ts
import tandem_snn.nn as tnn

f = te.functional
CAPABILITIES = ("default", "v3", "v4")
THREADS = 8


def results():
    """Of layers on numbers that are not dyadic, sizes with remainders and with work for two threads."""
    torch.manual_seed(0)
    for dtype in DTYPES:
        random = lambda *shape: torch.randn(*shape).to(dtype)  # noqa: B023, E731
        x, image = train_with_edge(9, 33, 203, dtype=dtype), train(9, 3, 13, 11, 10)
        weight, kernel = random(301, 203).requires_grad_(), random(21, 13, 3, 3).requires_grad_()
        shift = torch.randn(301)
        y, v = f.linear_if(x, weight, shift=shift, residual=train(9, 33, 301, gain=0.3), return_v=True)
        layers = [
            y, v, f.if_scan(random(9, 33, 30011), leak=0.9, return_v=True),
            f.if_scan(te.ConstantInput(random(33, 301), 9), threshold=0.3),
            f.linear_if(x, weight.detach(), shift=shift, gate="clip"),
            f.conv2d_if(image, kernel, padding=1, stride=2, return_v=True),
            f.bn_if(x, weight),
            f.bn_if(image, kernel, padding=1),
            f.linear_if(bursts(9, 33, 203), weight, shift=shift, timing="window", return_v=True),
            f.bn_if(image, kernel, padding=1, timing="window"),
        ]  # fmt: skip
        for part in pytree.tree_leaves(layers, is_leaf=lambda part: isinstance(part, te.SpikeTrain)):
            yield from (part.planes, part.counts.detach()) if isinstance(part, te.SpikeTrain) else (part,)
        mask = torch.randint(0, 256, ((y.counts.numel() + 7) // 8,), dtype=torch.uint8)
        yield torch.ops.tandem.gate_grad(torch.randn_like(y.counts), mask, 0.3)
        dense = y.to_dense()
        yield from (dense, te.planes.pack(dense), te.planes.counts(y.planes))


def digest():
    total = hashlib.sha256()
    for tensor in results():
        total.update(tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()


def capability_and_digest(**environment):
    """In a process of its own."""
    program = "import test_processes as t; print(t.te.build_info()['cpu_capability'], t.digest())"
    return child.run("-c", program, **environment).split()


@pytest.fixture(scope="module")
def expected():
    return capability_and_digest()


@pytest.mark.parametrize("capability", CAPABILITIES)
def test_every_instruction_set_gives_the_same_bits(capability, expected):
    best, bits = expected
    if CAPABILITIES.index(capability) > CAPABILITIES.index(best):
        pytest.skip(f"this machine has no {capability}")
    assert capability_and_digest(TANDEM_CPU_CAPABILITY=capability) == [capability, bits]


@pytest.mark.parametrize("path", ["lists", "digits"])
def test_every_way_gives_the_same_bits(path, expected):
    try:
        assert capability_and_digest(TANDEM_PATH=path) == expected
    except AssertionError as error:
        if f"TANDEM_PATH={path}: this processor has no" not in str(error):
            raise
        pytest.skip(str(error).splitlines()[-1])


@pytest.mark.parametrize(("environment", "words"), [
    ({"TANDEM_CPU_CAPABILITY": "v5"}, "v5"), ({"TANDEM_PATH": "lisst"}, "TANDEM_PATH=lisst: .*allowed are lists, dig"),
    ({"TANDEM_PATH": "digits", "TANDEM_CPU_CAPABILITY": "default"}, "TANDEM_PATH=digits: .*no products of bytes"),
])  # fmt: skip
def test_what_does_not_exist_is_refused(environment, words):
    with pytest.raises(AssertionError, match=words):
        capability_and_digest(**environment)


def test_any_number_of_threads_gives_the_same_bits(expected):
    threads = torch.get_num_threads()
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            assert digest() == expected[1]
    finally:
        torch.set_num_threads(threads)


def at_once(function):
    """The results of ``function(i)`` in as many threads, which start together; the first error is raised."""
    barrier = threading.Barrier(THREADS)

    def run(i):
        barrier.wait(60)
        return function(i)

    with ThreadPoolExecutor(THREADS) as pool:
        return list(pool.map(run, range(THREADS)))


def test_ops_and_a_network_from_eight_threads_at_once():
    """Calls that the kernels share among threads; gradients of a shared weight, whose sum has no rounding."""
    x, image, currents = train(8, 64, 300), train(8, 4, 16, 12, 12), dyadic(8, 64, 257)
    weight, kernel = dyadic(257, 300), dyadic(33, 16, 3, 3)
    todo = [
        lambda: f.if_scan(currents, threshold=0.5),
        lambda: f.linear_if(x, weight),
        lambda: f.conv2d_if(image, kernel, padding=1),
        lambda: f.bn_if(x, weight),
        lambda: te.planes.pack(x.to_dense()),
    ]
    expected = [call() for call in todo]

    def run(i):
        return [(j % len(todo), todo[j % len(todo)]()) for j in range(i, i + 3 * len(todo))]

    for results in at_once(run):
        for index, result in results:
            assert_same(result, expected[index])
    weight = dyadic(65, 128).requires_grad_()
    inputs = [train(8, 16, 128) for _ in range(THREADS)]
    for x in inputs:
        f.linear_if(x, weight).counts.sum().backward()
    grads = at_once(lambda i: torch.autograd.grad(f.linear_if(inputs[i], weight).counts.sum(), weight)[0])
    assert torch.equal(sum(grads), weight.grad)
    net = torch.nn.Sequential(tnn.Encoder(T=8), tnn.Linear(40, 30, norm=True), tnn.Readout(30, 10)).eval()
    frozen = ts.freeze(net)
    batches = torch.rand(THREADS, 16, 40)
    with torch.no_grad():
        expected = [net(batch) for batch in batches]
        answers = at_once(lambda i: [(net(batches[i]), frozen(batches[i])) for _ in range(20)])
    for want, results in zip(expected, answers, strict=True):
        assert all(torch.equal(got, want) for pair in results for got in pair)


def test_threads_call_modules_while_another_freezes():
    """A trace of a network, when it is frozen or meets a new gain, changes nothing that modules of others use."""
    twin = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))
    net = torch.nn.Sequential(tnn.Linear(6, 5), tnn.Residual(tnn.Linear(5, 5)), tnn.Readout(5, 3)).eval()
    x, spikes, done = torch.rand(2, 6), te.SpikeTrain.from_dense(torch.ones(8, 2, 6)), threading.Event()
    frozen = ts.freeze(net, T=8)
    calls = [lambda: twin(x), lambda: net(spikes), lambda: frozen(spikes)] * 2
    expected = [call() for call in calls]

    def run(call):
        answers = [call()]
        while not done.is_set():
            answers.append(call())
        return answers

    with torch.no_grad(), ThreadPoolExecutor(len(calls)) as pool:
        results = [pool.submit(run, call) for call in calls]
        try:
            for n in range(50):
                new = ts.freeze(net, T=8)
                assert torch.equal(new(spikes.replace(gain=n / 4)), net(spikes.replace(gain=n / 4)))
        finally:
            done.set()
        for result, want in zip(results, expected, strict=True):
            assert all(torch.equal(got, want) for got in result.result())


class Spikes(Dataset):
    """Samples that are made by the ops, in whichever process asks; and how many threads that adds to the process."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        torch.manual_seed(index)
        x, weight = train(8, 256, 784), dyadic(800, 784)
        before = len(os.listdir("/proc/self/task"))
        counts = f.linear_if(x, weight).counts
        return counts, len(os.listdir("/proc/self/task")) - before


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_workers_of_a_data_loader(method):
    """After the parent has used its threads: a forked child must not wait for threads that it does not have.

    torch gives each worker one thread, which our kernels keep to: cores are not asked for twice.
    """
    expected = [Spikes()[i][0] for i in range(8)]
    loader = DataLoader(Spikes(), batch_size=None, num_workers=2, multiprocessing_context=method, timeout=120)
    for (result, threads), wanted in zip(loader, expected, strict=True):
        assert torch.equal(result, wanted)
        assert threads == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_a_kernel(number):
    """Python's handlers, which may call ops, run after the op; the main thread may end then while others run ops, for
    which Python waits. (Daemon threads inside any op of torch abort the process at exit, up to Python 3.13.)
    """
    program = """
import signal, torch
from concurrent.futures import ThreadPoolExecutor
import tandem_ext as te
x, weight = te.SpikeTrain.from_dense((torch.rand(8, 512, 1024) < 0.3).float()), torch.randn(1024, 1024)
run = lambda *_: te.functional.linear_if(x, weight).counts
expected = run()
def stop(*_):
    raise KeyboardInterrupt(torch.equal(run(), expected))
signal.signal(signal.SIGTERM, stop)
signal.signal(signal.SIGINT, stop)
print("ready", flush=True)
try:
    while True:
        assert torch.equal(run(), expected)
except KeyboardInterrupt as told:
    print(told)
pool = ThreadPoolExecutor(3)
for _ in range(6):
    work = pool.submit(lambda: torch.equal(run(), expected))
    work.add_done_callback(lambda done: print(f"{done.result()}\\n", end="", flush=True))  # as one piece
"""
    process = child.start("-c", program)
    assert process.stdout.readline().strip() == "ready"
    time.sleep(0.2)
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out.split()) == (0, ["True"] * 7), err


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.kernels
@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="no /proc/self/statm: memory cannot be read")
def test_ten_thousand_calls_leak_nothing():
    x, weight, currents = train(8, 4, 64), dyadic(32, 64).requires_grad_(), dyadic(8, 2, 32)
    image, kernel = train(8, 1, 4, 5, 5), dyadic(4, 4, 3, 3).requires_grad_()
    net = torch.nn.Sequential(tnn.Encoder(T=8), tnn.Linear(16, 8), tnn.Readout(8, 4)).eval()
    frozen, sample = ts.freeze(net), torch.rand(1, 16)

    def run(times):
        for _ in range(times):
            f.linear_if(x, weight).counts.sum().backward()
            f.bn_if(x, weight)[0].counts.sum().backward()
            f.conv2d_if(image, kernel, return_v=True)[0].counts.sum().backward()
            te.planes.pack(f.if_scan(currents).to_dense())
            frozen(sample)
            with pytest.raises(ValueError, match="weight"):
                f.linear_if(x, weight[:, 1:])
        gc.collect()

    run(100)
    before = resident()
    run(1567)  # six calls each: ten thousand in all
    grown = resident() - before
    tracemalloc.start()
    run(20)
    base = tracemalloc.get_traced_memory()[0]
    run(100)
    traced = tracemalloc.get_traced_memory()[0] - base
    tracemalloc.stop()
    assert grown < 8 << 20  # a leak of a kilobyte a call would be 10 MiB
    assert traced < 64 << 10
