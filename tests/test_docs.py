"""The documents: their code runs, their commands run, and the site builds and is complete."""

import importlib
import inspect
import os
import re
import shlex
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from extras import needs

from train import make_parser

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^( *)```(\w*)[^\n]*\n(.*?)^\1```", re.MULTILINE | re.DOTALL)
OTHERS = ("spikingjelly", "snntorch", "nir", "onnx", "onnxruntime", "tonic")  # libraries that a page is about
SIMULATORS = re.compile("spikingjelly|snntorch")
PROJECT = [ROOT / "CONTRIBUTING.md", ROOT / "SECURITY.md"]  # what they name is there too
NOTEBOOKS = ("tutorial-events.md",)  # pages whose code is that of a notebook, which takes data and minutes
NOT_RUN = ("pip install", "make ")  # they change the environment; the tests of the build are about them


def blocks(page, *languages):
    return [textwrap.dedent(code) for _, language, code in FENCE.findall(page.read_text()) if language in languages]


def having(*languages):
    """The pages with code in these languages; that of simulators is no part of `make test`."""
    found = [page for page in PAGES if blocks(page, *languages)]
    marks = [[pytest.mark.clients] * bool(SIMULATORS.search("".join(blocks(page, *languages)))) for page in found]
    pages = [pytest.param(p, marks=m, id=str(p.relative_to(ROOT))) for p, m in zip(found, marks, strict=True)]
    return pytest.mark.parametrize("page", pages)


@having("python")
def test_code_runs(page, tmp_path, monkeypatch):
    """In the order of the page, which may build on itself."""
    if page.name in NOTEBOOKS:
        pytest.skip("the same code runs as a notebook: tests/test_notebooks.py")
    monkeypatch.chdir(tmp_path)
    names = {}
    try:
        for i, code in enumerate(blocks(page, "python")):
            exec(compile(code, f"{page.relative_to(ROOT)}:{i}", "exec"), names)
    except ModuleNotFoundError as error:
        if str(error.name).split(".")[0] not in OTHERS:
            raise
        needs(str(error.name))


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
            environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
            subprocess.run([sys.executable, *arguments], check=True, timeout=300, env=environment)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_block_says_what_it_is(page):
    found = FENCE.findall(page.read_text())
    assert 2 * len(found) == len(re.findall(r"^ *```", page.read_text(), re.MULTILINE))
    assert {language for _, language, _ in found} <= {"python", "sh", "text", "cmake"}
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


@pytest.mark.parametrize("page", [*PAGES, *PROJECT], ids=lambda page: str(page.relative_to(ROOT)))
def test_what_the_text_names_is_there(page):
    """Files, folders and targets of make, and what links lead to that are neither to a server nor within the page."""
    text = FENCE.sub("", page.read_text())
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for code in re.findall(r"`([^`\n]+)`", text):
        for path in re.findall(
            r"(?<![\w/.:-])(?:python|tests|docs|csrc|tandem_ext|build_tools|cmake)/[\w/.*<-]+", code
        ):
            assert not {"*", "<"}.isdisjoint(path) or (ROOT / path).exists(), path
        if target := re.match(r"(?:\w+=\S+ )*make ([\w-]+)", code):
            assert target[1] in targets
    for link in re.findall(r"\]\(([^)#:]+)[)#]", text):
        assert (page.parent / link).exists(), link


def test_every_page_is_in_the_navigation():
    text = (ROOT / "mkdocs.yml").read_text()
    named = set(re.findall(r"([\w/-]+\.md)$", text, re.MULTILINE))
    assert named == {str(page.relative_to(ROOT / "docs")) for page in PAGES[1:]}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    needs("mkdocs")
    needs("mkdocstrings")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "-q", "--strict", "--site-dir", folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
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


def test_the_site_is_whole(site):
    """It loads nothing from elsewhere; links, pictures, scripts and styles lead to files, so it needs no server."""
    for page in site.rglob("*.html"):
        for tag, source in re.findall(r'<(\w+)\b[^>]*?\b(?:src|href)="([^"#?]+)', page.read_text()):
            if source.startswith(("http:", "https:")):
                assert tag == "a", source
            elif page.name != "404.html":  # its links are from the root: a server's page
                assert (page.parent / source).is_file(), f"{page.name}: {source}"


def test_examples_in_docstrings_are_code(site):
    text = (site / "api/measure.html").read_text()
    assert "<blockquote>" not in text  # what >>> is to Markdown
    assert ":func:" not in text
    assert ":class:" not in text
