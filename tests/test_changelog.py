"""CHANGELOG's table of old and new code: what is gone says so, and what replaces it is there."""

import re
from pathlib import Path
from typing import Any

import pytest
import tomllib
import torch
from torch import nn

import tandem_ext as te
import tandem_snn as ts
import tandem_snn.nn as tnn
from train import make_parser

ROOT = Path(__file__).parents[1]
TABLE = (ROOT / "CHANGELOG.md").read_text().partition("| before | now |")[2].partition("\n\n")[0]
ROWS = [line.strip(" |").split(" | ") for line in TABLE.splitlines()[2:]]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
OPTION = re.compile(r"--[a-z]")


def spans(column: int) -> Any:
    """The pieces of code in a column, each with the text of its cell."""
    found = {code: row[column] for row in ROWS for code in re.findall(r"`([^`]+)`", row[column])}
    return pytest.mark.parametrize(("code", "cell"), found.items(), ids=found)


def evaluated(code: str) -> Any:
    """What an expression gives, where its variables are what their names say."""
    net = nn.Sequential(tnn.Encoder(8), tnn.Linear(4, 3), tnn.Readout(3, 2))
    names = {"frozen": ts.freeze(net), "x": torch.rand(5, 4), "y": torch.tensor([0, 1, 0, 1, 0]), "confidence": 0.9}
    ann = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    modules = {"te": te, "ts": ts, "tnn": tnn, "nn": nn, "torch": torch}
    return eval(code, {**modules, "ann": ann, "net": net, "T": 8, **names})


def test_the_table_is_found() -> None:
    assert len(ROWS) > 15
    assert all(len(row) == 2 for row in ROWS)


@spans(0)
def test_what_is_gone_says_so_in_a_line(code: str, cell: str) -> None:
    if cell.startswith("extras"):
        assert code not in PROJECT["optional-dependencies"]
    elif code.startswith("tandem-snn"):
        assert "scripts" not in PROJECT
    elif OPTION.match(code):
        with pytest.raises(SystemExit):
            make_parser().parse_args(["digits", *code.split()])
    else:
        with pytest.raises((ImportError, TypeError, ValueError)) as caught:
            evaluated(code)
        assert "\n" not in str(caught.value)
        gone = r"is gone since 0\.2\.0: .|timing='window' replaces 'resu'|unexpected keyword argument 'gate'"
        assert re.search(gone, str(caught.value)), caught.value


@spans(1)
def test_what_replaces_it_is_there(code: str, cell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "python/experiments")
    written = "".join(path.read_text() for path in (ROOT / "python/experiments").glob("*.py"))
    if any(code in row[1] and row[0].startswith("extras") for row in ROWS):
        assert code in PROJECT["optional-dependencies"]
    elif OPTION.match(code):
        make_parser().parse_args(["digits", *code.split()])
    elif code.startswith("python python/experiments/train.py"):
        make_parser().parse_args(code.split()[2:])
    elif code.startswith("python -m "):
        assert (ROOT / "python" / code.split()[2] / "__main__.py").exists()
    elif code.endswith(".py"):
        assert (ROOT / code).exists()
    elif re.fullmatch(r"(seed-0/)?\w+\.(png|json|tandem)", code):
        assert code.rpartition("/")[2] in written
    else:
        evaluated(code)
