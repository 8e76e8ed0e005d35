"""The documents: code and commands run, figures are those of results, the site is whole."""

import importlib
import inspect
import json
import re
import shlex
import sys

import child
import claims
import mutate
import names
import performance
import pytest
import results
import tomllib
import torch
from pages import FENCE, PAGES, ROOT, blocks
from tables import with_table

import tandem_snn.nn as tnn
from train import make_parser

OTHERS = ("spikingjelly", "snntorch", "sinabs", "nirtorch", "nir", "onnx", "onnxruntime", "tonic")
PATH = re.compile(r"(?<![\w/.:-])(?:python|tests|docs|csrc|tandem_ext|build_tools|cmake)/[\w/.*<-]+")
SIMULATORS = re.compile("spikingjelly|snntorch")
PROJECT = [ROOT / name for name in ("CONTRIBUTING.md", "SECURITY.md", "tests/README.md", "tests/cuda_host/README.md")]
NOTEBOOKS = ("tutorial-events.md",)  # pages whose code is that of a notebook, which takes data and minutes
NOT_RUN = ("pip install", "make ")  # they change the environment; the tests of the build are about them
COMMITTED = sorted((ROOT / "docs/results/training").glob("*.json"))
README = (ROOT / "README.md").read_text()
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]


def having(*languages):
    """The pages with code in these languages; that of simulators is no part of `make test`."""
    found = [page for page in PAGES if blocks(page, *languages)]
    marks = [[pytest.mark.clients] * bool(SIMULATORS.search("".join(blocks(page, *languages)))) for page in found]
    pages = [pytest.param(p, marks=m, id=str(p.relative_to(ROOT))) for p, m in zip(found, marks, strict=True)]
    return pytest.mark.parametrize("page", pages)


@having("python")
def test_code_runs(page, tmp_path, monkeypatch):
    if page.name in NOTEBOOKS:
        pytest.skip("the same code runs as a notebook: tests/project/test_examples.py")
    monkeypatch.chdir(tmp_path)
    names = {}
    try:
        for i, code in enumerate(blocks(page, "python")):
            exec(compile(code, f"{page.relative_to(ROOT)}:{i}", "exec"), names)
    except ModuleNotFoundError as error:
        if str(error.name).split(".")[0] not in OTHERS:
            raise
        pytest.importorskip(str(error.name))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_code_imports_what_all_installs_or_its_page_names(page):
    with_all = [one for extra in EXTRAS if f"{extra}," in EXTRAS["all"][0].replace("]", ",") for one in EXTRAS[extra]]
    code = "".join(blocks(page, "python"))
    modules = set(re.findall(r"^ *(?:import|from) (\w+)", code, re.MULTILINE)) - sys.stdlib_module_names
    for module in modules - {"torch", "numpy", "tandem_ext", "tandem_snn"}:
        package = {"sklearn": "scikit-learn"}.get(module, module)
        assert package in with_all or re.search(rf"`pip install [^`]*\b{package}\b", page.read_text()), package


@having("sh")
def test_commands_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for line in "".join(blocks(page, "sh")).splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] == ["torchrun"]:  # that it runs: test_distributed.py
            make_parser().parse_args(words[words.index("python/experiments/train.py") + 1 :])
        elif line.startswith(NOT_RUN):
            target = words[1] if words[0] == "make" else None
            assert target is None or re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        else:
            assert words[0] == "python"
            arguments = [ROOT / word if word.startswith("python/") else word for word in words[1:]]
            child.run(*arguments)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_says_what_it_is(page):
    found = FENCE.findall(page.read_text())
    assert 2 * len(found) == len(re.findall(r"^ *```", page.read_text(), re.MULTILINE))
    assert {language for _, language, _ in found} <= {"python", "sh", "text", "cmake", "c", "cpp"}
    for _, _, code in found:  # what the site's column holds at 1280 pixels
        assert max(map(len, code.splitlines())) <= 124


@having("text")
def test_commands_with_placeholders_are_true(page):
    """They are not run: their script is there, and its options are parsed."""
    for line in "".join(blocks(page, "text")).splitlines():
        if line.startswith("python python/experiments/"):
            script, *arguments = shlex.split(line, comments=True)[1:]
            assert (ROOT / script).exists()
            make_parser().parse_args(arguments)


def test_every_file_of_the_code_has_tests_that_guard_it():
    """By the table of tests/README.md, which mutate.py reads."""
    for pattern in "tandem_ext/**/*.py", "python/tandem_snn/**/*.py", "csrc/**/*.cpp", "csrc/**/*.cu":
        for path in ROOT.glob(pattern):
            guards = mutate.guards(path.relative_to(ROOT).as_posix())
            assert guards
            assert all((ROOT / name).exists() for name in guards)


@pytest.mark.parametrize("page", [*PAGES, *PROJECT], ids=lambda page: str(page.relative_to(ROOT)))
def test_what_the_text_names_is_there(page):
    """Files, folders and targets of make, and what links lead to that are neither to a server nor within the page."""
    text = FENCE.sub("", page.read_text())
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for code in re.findall(r"`([^`\n]+)`", text):
        for path in re.findall(PATH, code):
            assert not {"*", "<"}.isdisjoint(path) or (ROOT / path).exists(), path
        if target := re.match(r"(?:\w+=\S+ )*make ([\w-]+)", code):
            assert target[1] in targets
    for link in re.findall(r"\]\(([^)#:]+)[)#]", text):
        assert (page.parent / link).exists(), link


def test_modules_import_only_from_those_below_them():
    """In the order of docs/design.md."""
    text = (ROOT / "docs/design.md").read_text().partition("imports only from those after it: ")[2].partition(".\n")[0]
    order = re.findall(r"`(\w+)`", text)
    package = ROOT / "python/tandem_snn"
    for path in package.rglob("*.py"):
        here = path.relative_to(package).with_suffix("").parts
        if here[0].startswith("__"):
            continue
        for dots, module, used in re.findall(r"^ *from (\.+)(\w*)\S* import (.+)$", path.read_text(), re.MULTILINE):
            if len(dots) == len(here):
                for name in [module] if module else re.findall(r"(\w+)(?: as \w+)?", used):
                    assert order.index(name) > order.index(here[0]), path


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text()
    named = set(re.findall(r"([\w/-]+\.md)$", text, re.MULTILINE))
    assert named == {str(page.relative_to(ROOT / "docs")) for page in PAGES[1:]}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    folder = tmp_path_factory.mktemp("site")
    child.run("-m", "mkdocs", "build", "-q", "--strict", "-f", ROOT / "mkdocs.yml", "--site-dir", folder)
    return folder


@pytest.mark.parametrize("name", ["tandem_snn", "tandem_snn.nn", "tandem_snn.tonic", "tandem_snn.measure",
                                  "tandem_snn.plots", "tandem_snn.ann",
                                  "tandem_ext", "tandem_ext.functional"])  # fmt: skip
def test_the_reference_is_complete(site, name):
    reference = "".join(page.read_text() for page in (site / "api").glob("*.html"))
    documented = set(re.findall(r'id="(tandem_\w+(?:\.\w+)+)"', reference))
    for public in importlib.import_module(name).__all__:
        thing = getattr(importlib.import_module(name), public)
        module = getattr(thing, "__module__", name)
        if not inspect.ismodule(thing) and not module.startswith("torch.") and public != "__version__":
            assert documented & {f"{name}.{public}", f"{module}.{getattr(thing, '__qualname__', public)}"}, public
    verbs = ("reset", "moved", "step", "settle", "readouts", "anytime", "follow")  # which FrozenNetwork inherits
    assert documented >= {f"tandem_snn.FrozenNetwork.{verb}" for verb in verbs}


def test_the_site_is_whole(site):
    """It loads nothing from elsewhere; links, pictures, scripts and styles lead to files, so it needs no server."""
    for page in site.rglob("*.html"):
        for tag, source in re.findall(r'<(\w+)\b[^>]*?\b(?:src|href)="([^"#?]+)', page.read_text()):
            if source.startswith(("http:", "https:")):
                assert tag == "a", source
            elif page.name != "404.html":  # its links are from the root: a server's page
                assert (page.parent / source).is_file(), f"{page.name}: {source}"
    text = (site / "api/measure.html").read_text()
    assert "<blockquote>" not in text  # what >>> is to Markdown
    assert ":func:" not in text
    assert ":class:" not in text


def read(name):
    return json.loads((ROOT / f"docs/results/{name}.json").read_text())


MEASURED = {row["case"]: row for row in read("bench-1")["rows"]}


def test_the_page_of_names_is_that_of_the_docstrings():
    assert (ROOT / "docs/api/names.md").read_text() == names.page(), "run docs/pages/names.py"
    classes = {name: thing for name in tnn.__all__ if isinstance(thing := getattr(tnn, name), type)}
    layers = {name for name, thing in classes.items() if issubclass(thing, torch.nn.Module)}
    listed = README.partition("Layers are ")[2].partition("(")[0]
    assert set(re.findall(r"`(\w+)`", listed)) == layers - {"SpikingLayer", "SyncBatchNorm"}


def test_the_pages_are_those_of_the_results(tmp_path):
    page = (ROOT / "docs/results.md").read_text()
    assert with_table(page, "results", results.tables([results.read(path) for path in COMMITTED[::-1]])) == page
    assert [line for line in page.splitlines() if line != line.rstrip()] == []
    for name, written in {"paper": claims.document, "convert": claims.conversion}.items():
        page = (ROOT / f"docs/{name}.md").read_text()
        assert written(page) == page
    page = (ROOT / "docs/performance.md").read_text()
    assert performance.document(page) == page
    page = (ROOT / "docs/measuring.md").read_text()
    assert performance.contributors(page) == page
    performance.draw(read("bench-1"), tmp_path / "home.png")
    assert (tmp_path / "home.png").stat().st_size > 5000
    path = tmp_path / "x.json"
    for text in "{", "[]", '{"T": 8}', '{"recipe": {"data": "letters"}}':
        path.write_text(text)
        with pytest.raises(SystemExit, match="is not the summary of a run"):
            results.read(path)


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_committed_results_are_consistent(path):
    one = results.read(path)
    metric, recipe = f"test_{one['metric']}", one["recipe"]
    assert [seed["seed"] for seed in one["per_seed"]] == list(range(recipe["seed"], recipe["seed"] + recipe["seeds"]))
    for prefix in "", "ann_":
        values = [seed[prefix + metric] for seed in one["per_seed"]]
        assert one[prefix + metric] == pytest.approx(sum(values) / len(values), rel=1e-4)
    # The frozen network's stream arrives where the evaluation is.
    if f"{metric}_over_time" in one:
        assert one[f"{metric}_over_time"][-1] == pytest.approx(one[metric], rel=1e-3)


def table(heading):
    lines = README.partition(f"## {heading}")[2].partition("## ")[0].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")][2:]
    return {name: cells for name, *cells in rows}


def test_the_accuracies_and_the_numbers_at_the_top_of_the_readme():
    accuracies = {
        "CIFAR-10† (a JPEG copy), T = 8, from the twin": "cifar10-jpeg-window-from-twin",
        "Fashion-MNIST, T = 8, from random weights, five seeds": "fashion-mnist-window",
        "Fashion-MNIST, T = 8, from random weights, five seeds, learned thresholds": "fashion-mnist-window-learned",
        "Fashion-MNIST, T = 4, from random weights, five seeds": "fashion-mnist-window-t4",
        "Fashion-MNIST†, T = 4, from random weights, five seeds, trained sparse": "fashion-mnist-window-t4-sparse",
        "Fashion-MNIST, T = 8, from the twin": "fashion-mnist-window-from-twin",
        "Fashion-MNIST, T = 4, from the twin": "fashion-mnist-window-from-twin-t4",
        "MNIST†, T = 8, from the twin": "mnist-window",
        "`make train`: scikit-learn's digits, 8×8 pixels, T = 8, from random weights, ten seeds": "digits",
    }
    shown = table("Accuracy")
    assert len(shown) == len(accuracies)
    for what, name in accuracies.items():
        run = read(f"training/{name}")
        twin, continued = (run.get(f"{kind}test_accuracy") for kind in ("ann_", "ann_continued_"))
        assert len(run["per_seed"]) == next((n for word, n in (("five", 5), ("ten", 10)) if f"{word} seeds" in what), 3)
        assert ("†" in what) == results.earlier(results.read(ROOT / f"docs/results/training/{name}.json"))
        assert shown[what] == [
            f"{run['test_accuracy']:.2f}", f"{twin:.2f}", "" if continued is None else f"{continued:.2f}",
            f"{run['synops_ratio']:.2f}",
        ]  # fmt: skip
    top, run = README.partition("## ")[0], read("training/fashion-mnist-window-from-twin-t4")
    step = performance.relative(MEASURED["conv-net-train-9"], "windows")
    memory = performance.by_T(read("bench-1"), "peak")[8]
    for shown in (
        f"**{run['test_accuracy']:.2f} %**", f"{run['ann_test_accuracy']:.2f} %", f"**{step} ×**",
        f"**{memory['windows'] / memory['ANN']:.1f} ×**", f"{memory['BPTT'] / memory['ANN']:.1f} ×",
    ):  # fmt: skip
        assert shown in top


def test_the_costs_in_the_readme():
    costs = {
        "training step, convolutional network": ("conv-net-train-9", "tandem", "windows"),
        "training step, MLP": ("mlp-train-T8-rate", "tandem", "windows"),
        "inference of that MLP": ("mlp-infer-128-rate", "frozen", "frozen, windows"),
        "the same with 8-bit weights": ("mlp-infer-128-rate", "frozen, 8 bits", "frozen, 8 bits, windows"),
        "inference of a convolution": ("conv-128-256-rate-10", "tandem", "windows"),
    }
    shown = table("Cost")
    assert len(shown) == len(costs)
    for (what, cells), (start, (case, *ours)) in zip(shown.items(), costs.items(), strict=True):
        assert what.startswith(start)
        assert cells[:2] == [performance.relative(MEASURED[case], way) for way in ours], what
        for name, cell in zip(("SpikingJelly", "snnTorch"), cells[2:], strict=True):
            assert cell == "" or cell == f"{float(performance.relative(MEASURED[case], name)):.1f}", what
