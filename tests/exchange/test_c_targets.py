"""The C of to_c compiled for other compilers and processors: net_test() is right on each that can run here."""

import importlib.util
import json
import runpy
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from any_window import counts_of, drawn
from pages import ROOT, blocks

import tandem_ext as te
import tandem_snn as ts

pytestmark = [pytest.mark.kernels, pytest.mark.clients]
STRICT = ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Wconversion", "-Werror", "-O2", "-DNET_STEP"]
SEEDS = [0, 5, 9, 24, 30]  # lines, rows and images; floats in some; pooling


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Networks of several kinds as C, each with a main that tests it."""
    made = [tmp_path_factory.mktemp(str(seed)) for seed in SEEDS]
    for seed, folder in zip(SEEDS, made, strict=True):
        ts.to_c(drawn(seed)[0], folder)
        (folder / "main.c").write_text('#include "net.h"\nint main(void) { return net_test(); }\n')
    return made


def zig(target, *options):
    if importlib.util.find_spec("ziglang") is None:
        pytest.skip("the package ziglang is not installed")
    return [sys.executable, "-m", "ziglang", "cc", "-target", target, *options]


def built(command, folder, *sources):
    subprocess.run([*command, *STRICT, "-o", folder / "net", *(folder / s for s in sources)], check=True)
    return folder / "net"


@pytest.mark.parametrize("compiler", ["gcc", "clang"])
@pytest.mark.parametrize("options", [["-O3"], ["-fsanitize=undefined,address", "-fno-sanitize-recover=all"], ["-m32"]])
def test_of_this_machine(compiler, options, folders):
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler}")
    for folder in folders:
        command = [compiler, *options]
        if (
            options == ["-m32"]
            and subprocess.run([*command, folder / "main.c", folder / "net.c"], cwd=folder).returncode
        ):
            pytest.skip("no libraries of 32 bits")
        assert subprocess.run([built(command, folder, "net.c", "main.c")]).returncode == 0


@pytest.mark.parametrize(("target", "emulator"), [
    ("native", None), ("x86-linux-musl", None), ("arm-linux-musleabihf", "qemu-arm"),
    ("arm-linux-musleabi", "qemu-arm"), ("aarch64-linux-musl", "qemu-aarch64"), ("riscv32-linux-musl", "qemu-riscv32"),
])  # fmt: skip
def test_of_other_machines(target, emulator, folders):
    runs = emulator is None or shutil.which(emulator) is not None
    for folder in folders:
        if not runs:
            built(zig(target, "-ffreestanding", "-c"), folder, "net.c")
            continue
        program = built(zig(target), folder, "net.c", "main.c")
        assert subprocess.run([*filter(None, [emulator]), program]).returncode == 0
    if not runs:
        pytest.skip(f"compiled, not run: no {emulator}")


def test_of_a_microcontroller_without_libraries(folders):
    for folder in folders:
        built(zig("thumb-freestanding-eabi", "-mcpu=cortex_m0", "-ffreestanding", "-c"), folder, "net.c")


@pytest.mark.parametrize("host", ["wasmtime", "node"])
def test_of_a_browser(host, folders):
    linked = ["-nostdlib", "-Wl,--no-entry", "-Wl,--export=net_test", "-Wl,--export=__heap_base"]
    read = "WebAssembly.instantiate(require('fs').readFileSync(process.argv[1]))"
    call = f"{read}.then(m => process.exit(m.instance.exports.net_test()))"
    for folder in folders:
        program = built(zig("wasm32-freestanding", *linked), folder, "net.c")
        if host == "node":
            if shutil.which("node") is None:
                pytest.skip("no node")
            assert subprocess.run(["node", "-e", call, program]).returncode == 0
            continue
        wasmtime = pytest.importorskip("wasmtime")
        store = wasmtime.Store()
        module = wasmtime.Module.from_file(store.engine, str(program))
        assert wasmtime.Instance(store, module, []).exports(store)["net_test"](store) == 0


def test_the_page_s_main(folders):
    page = ROOT / "docs" / "howto" / "integers.md"
    for folder in folders:
        (folder / "main.c").write_text(*blocks(page, "c"))
        program = built(["gcc"], folder, "net.c", "main.c")
        assert subprocess.run([program], capture_output=True, text=True, check=True).stdout


REPLAY = """
const Net = require(process.argv[1] + "/net.js"), fs = require("fs");
const facts = JSON.parse(fs.readFileSync(process.argv[1] + "/net.json"));
WebAssembly.instantiate(fs.readFileSync(process.argv[1] + "/net.wasm")).then(async ({ instance }) => {
  const net = new Net(instance, facts), seen = [];
  for (const drawing of facts.samples) {
    while (net.step(drawing));
    seen.push({ counts: net.counts.map((layer) => [...layer]), sha256: await net.hash() });
  }
  console.log(JSON.stringify(seen));
});
"""


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """The names of serve.py, its network, test digits, and the folder of the page."""
    zig("native")
    web = runpy.run_path(str(ROOT / "python" / "examples" / "web" / "serve.py"))
    frozen, test = web["trained"](1)
    web["build"](frozen, test, folder := tmp_path_factory.mktemp("web"))
    return web, frozen, test, folder


def by_layer(frozen, x):
    """The counts of each layer, [B, neurons], channels last."""
    return [counts.movedim(1, -1).flatten(1).int() for counts in counts_of(frozen, x).values()]


def test_drawings_on_the_page(page):
    """Replayed one after the other, as the page runs them: the counts of every layer and the logits are Python's."""
    web, frozen, test, folder = page
    if shutil.which("node") is None:
        pytest.skip("no node")
    found = subprocess.run(["node", "-e", REPLAY, folder], capture_output=True, text=True, check=True).stdout
    expected = by_layer(frozen, test[:8])
    for n, seen in enumerate(json.loads(found)):
        assert seen["counts"] == [layer[n].tolist() for layer in expected]
        assert seen["sha256"] == web["answer"](frozen, test.counts[n].flatten().tolist())["sha256"]


def test_the_page_in_chromium(page):
    """A digit is drawn with the pointer."""
    web, frozen, _, folder = page
    server = ThreadingHTTPServer(("localhost", 0), partial(web["Handler"], frozen, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    command = [sys.executable, Path(__file__).with_name("browser.py"), f"http://localhost:{server.server_port}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    finally:
        server.shutdown()
        server.server_close()
    if done.returncode == 77:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert max(seen["drawing"]) == 16
    drawing = torch.tensor(seen["drawing"]).view(1, *frozen.shape)
    expected = by_layer(frozen, te.SpikeTrain.from_counts(drawing.float(), T=16))
    assert seen["counts"] == [layer[0].tolist() for layer in expected]
    assert seen["ours"] == seen["theirs"] == web["answer"](frozen, seen["drawing"])["sha256"]
