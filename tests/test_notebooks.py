"""examples/notebooks: they run in a fresh kernel, and what they show is what they compute."""

import os
import re
import textwrap
from pathlib import Path

import pytest
from extras import needs

nbformat = needs("nbformat")
pytestmark = pytest.mark.clients

ROOT = Path(__file__).parents[1]
GPU = ROOT / "examples/notebooks/gpu_check.ipynb"  # has never run on one, and shows nothing
EVENTS = ROOT / "examples/notebooks/events.ipynb"
PAGE = ROOT / "docs/tutorial-events.md"
# tonic takes its data set for missing where it is not whole.
PART = "import tonic\ntonic.datasets.NMNIST._check_exists = lambda self: True"


def code(path):
    return [cell.source for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]


@pytest.mark.parametrize("path", sorted({*GPU.parent.glob("*.ipynb")} - {GPU}), ids=lambda path: path.stem)
def test_they_are_as_they_were_run(path):
    """All cells ran in order, none failed, pictures are there, and nothing tells of the machine."""
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert not any(output.output_type == "error" for output in outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
    text = path.read_text()
    assert not re.search(r"/(home|root|tmp|work)/", text)
    assert path.stat().st_size < 300_000


def test_the_page_of_events_has_the_notebooks_code():
    fences = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert [textwrap.dedent(block).strip() for block in fences] == [source.strip() for source in code(EVENTS)[1:]]


def execute(path, folder, *, before=None, change=("", ""), after):
    nbclient = needs("nbclient")
    needs("ipykernel")
    notebook = nbformat.read(path, 4)
    if before is not None:
        notebook.cells.insert(0, nbformat.v4.new_code_cell(before))
    for cell in notebook.cells:
        cell.source = cell.source.replace(*change)
    notebook.cells.append(nbformat.v4.new_code_cell(after))
    nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(folder)}}).execute()


@pytest.mark.parametrize(("name", "after"), [
    ("ten-minutes", "assert accuracy > 0.95"),
    ("moving-digit", "assert accuracy > 0.88 and costs[1] == 0 and all(costs[3:-2] < torch.tensor(whole[3:-2]))"),
    ("convert-and-deploy", "assert found[8][1] > found['ANN'] - 1.5 and right > 0.94"),
])  # fmt: skip
def test_they_run(name, after, tmp_path):
    execute(ROOT / f"examples/notebooks/{name}.ipynb", tmp_path, after=after)


def test_events_runs(tmp_path):
    for package in "lightning", "tonic":
        needs(package)
    recordings = Path(os.environ.get("TANDEM_DATA", "")).resolve() / "NMNIST"
    if not (recordings / "Train").is_dir():
        pytest.skip("TANDEM_DATA holds no NMNIST")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/NMNIST").symlink_to(recordings)
    execute(EVENTS, tmp_path, before=PART, after="assert right.double().mean() >= 0.97")


def test_gpu_check_is_rehearsed(tmp_path):
    notebook = nbformat.read(GPU, 4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    options = f'OPTIONS = "--dry-run --only verdict --out {tmp_path}"'
    execute(GPU, GPU.parent, change=('OPTIONS = ""', options), after="assert check.returncode == 0 and not missing")
    assert len(list(tmp_path.glob("gpu-rehearsal-*.zip"))) == 1
