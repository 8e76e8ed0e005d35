"""Threads and processes: ops called at once, after fork and spawn, at the interpreter's exit, under signals."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from cases import assert_same, dyadic, train
from torch.utils.data import DataLoader, Dataset

import tandem_ext as te
import tandem_snn as ts
import tandem_snn.nn as tnn

f, ref = te.functional, te.reference
THREADS = 8


def calls(seed=0):
    """One call of each family, large enough for the kernels to share it among threads."""
    torch.manual_seed(seed)
    x, image = train(8, 64, 300), train(8, 4, 16, 12, 12)
    weight, kernel = dyadic(257, 300), dyadic(33, 16, 3, 3)
    return [
        lambda m: m.if_scan(dyadic_currents, threshold=0.5),
        lambda m: m.linear_if(x, weight),
        lambda m: m.conv2d_if(image, kernel, padding=1),
        lambda m: m.linear_bn_if(x, weight),
        lambda _: te.pack(x.to_dense()),
    ]


dyadic_currents = (torch.arange(8 * 64 * 257).remainder(97).view(8, 64, 257) - 40) / 64


def at_once(function, threads=THREADS):
    """The results of ``function(i)`` in as many threads, which start together; the first error is raised."""
    barrier = threading.Barrier(threads)

    def run(i):
        barrier.wait(60)
        return function(i)

    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(run, range(threads)))


def test_ops_from_eight_threads_at_once():
    todo = calls()
    expected = [call(f) for call in todo]

    def run(i):
        return [(j % len(todo), todo[j % len(todo)](f)) for j in range(i, i + 3 * len(todo))]

    for results in at_once(run):
        for index, result in results:
            assert_same(result, expected[index])


def test_gradients_from_several_threads_add_up():
    """Layers share a weight; every thread has its graph. Dyadic numbers: the sum has no rounding and no order."""
    weight = dyadic(65, 128).requires_grad_()
    inputs = [train(8, 16, 128) for _ in range(THREADS)]
    for x in inputs:
        f.linear_if(x, weight).counts.sum().backward()
    expected, weight.grad = weight.grad, None
    lock = threading.Lock()

    def backward(i):
        counts = f.linear_if(inputs[i], weight).counts
        (grad,) = torch.autograd.grad(counts.sum(), weight)
        with lock:
            weight.grad = grad if weight.grad is None else weight.grad + grad

    at_once(backward)
    assert torch.equal(weight.grad, expected)


def test_one_network_serves_many_threads():
    net = torch.nn.Sequential(tnn.Encoder(T=8), tnn.Linear(40, 30, norm=True), tnn.Readout(30, 10)).eval()
    frozen = ts.freeze(net)
    batches = torch.rand(THREADS, 16, 40)
    with torch.no_grad():
        expected = [net(batch) for batch in batches]

        def run(i):
            return [(net(batches[i]), frozen(batches[i])) for _ in range(20)]

        for i, results in enumerate(at_once(run)):
            for result in results:
                assert all(torch.equal(r, expected[i]) for r in result)


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


def script(source, **arguments):
    """A Python process that runs ``source`` with this folder's modules at hand."""
    path = os.pathsep.join([os.path.dirname(__file__), *sys.path])
    return subprocess.Popen(
        [sys.executable, "-c", source], env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, **arguments,
    )  # fmt: skip


BUSY = """
import threading, time, torch
import tandem_ext as te
x = te.SpikeTrain.from_dense((torch.rand(8, 512, 1024) < 0.3).float())
weight = torch.randn(1024, 1024)
def work():
    while True:
        te.functional.linear_if(x, weight)
{body}
"""


def test_the_main_thread_may_end_while_ops_run():
    """Python waits for its threads. (Daemon threads inside any op of torch abort the process at exit, up to Python
    3.13: they are torch's, not ours.)
    """
    body = """
from concurrent.futures import ThreadPoolExecutor
pool = ThreadPoolExecutor(3)
expected = te.functional.linear_if(x, weight).counts
for _ in range(6):
    work = pool.submit(lambda: torch.equal(te.functional.linear_if(x, weight).counts, expected))
    work.add_done_callback(lambda done: print(f"{done.result()}\\n", end="", flush=True))  # as one piece
"""
    process = script(BUSY.format(body=body))
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out.split()) == (0, ["True"] * 6), err


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_during_a_kernel(number):
    """It acts after the op that runs: Python's handler raises, and the process ends as it would without us."""
    body = """
import signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's jobs in the background ignore it
print("ready", flush=True)
try:
    work()
except KeyboardInterrupt:
    sys.exit(7)
"""
    process = script(BUSY.format(body=body))
    assert process.stdout.readline().strip() == "ready"
    time.sleep(0.2)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 7, err


def test_a_signal_handler_may_call_ops():
    """On the thread that is inside a kernel Python runs handlers between ops; the interrupted result is whole."""
    x, weight = train(8, 64, 300), dyadic(257, 300)
    expected = f.linear_if(x, weight)
    seen = []
    previous = signal.signal(signal.SIGALRM, lambda *_: seen.append(f.linear_if(x, weight)))
    signal.setitimer(signal.ITIMER_REAL, 0.01, 0.01)
    try:
        end = time.monotonic() + 30
        while len(seen) < 5 and time.monotonic() < end:
            assert_same(f.linear_if(x, weight), expected)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
    assert len(seen) >= 5
    for result in seen:
        assert_same(result, expected)


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="no /proc/self/statm: memory cannot be read")
def test_ten_thousand_calls_leak_nothing():
    import gc
    import tracemalloc

    x, weight = train(8, 4, 64), dyadic(32, 64).requires_grad_()
    image, kernel = train(8, 1, 4, 5, 5), dyadic(4, 4, 3, 3).requires_grad_()
    net = torch.nn.Sequential(tnn.Encoder(T=8), tnn.Linear(16, 8), tnn.Readout(8, 4)).eval()
    frozen, sample = ts.freeze(net), torch.rand(1, 16)

    def once():
        f.linear_if(x, weight).counts.sum().backward()
        f.linear_bn_if(x, weight)[0].counts.sum().backward()
        f.conv2d_if(image, kernel, return_v=True)[0].counts.sum().backward()
        te.pack(f.if_scan(dyadic_currents[:, :2, :32]).to_dense())
        frozen(sample)
        with pytest.raises(ValueError, match="weight"):
            f.linear_if(x, weight[:, 1:])

    def run(times):
        for _ in range(times):
            once()
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
