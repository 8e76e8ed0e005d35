"""NIR: other simulators run the exported file to the same spike counts."""

from __future__ import annotations

from pathlib import Path

import pytest
from networks import differing, own_counts
from nir_simulators import (
    assert_same,
    by_nirtorch,
    by_norse,
    by_sinabs,
    by_snntorch,
    by_spikingjelly,
    counts_of,
    file_of,
    images,
    network,
)

pytestmark = pytest.mark.clients


def test_nirtorch_runs_the_primitives_to_the_same_counts(tmp_path: Path) -> None:
    net, x = network(), images()
    path = file_of(net, x, tmp_path, neurons="primitives")
    assert_same(own_counts(net, x), counts_of(*by_nirtorch(path), x))


def test_spikingjelly_runs_the_file_to_the_same_counts(tmp_path: Path) -> None:
    net, x = network(), images()
    path = file_of(net, x, tmp_path)
    ours = own_counts(net, x)
    assert_same(ours, counts_of(*by_spikingjelly(path), x))
    changed = differing(ours[0], counts_of(*by_spikingjelly(path, soft=False), x)[0])
    assert min(changed) > 0.01, "with its hard reset the counts are others"


def test_snntorch_runs_the_file_to_the_same_counts(tmp_path: Path) -> None:
    net, x = network(), images()
    path = file_of(net, x, tmp_path)
    ours = own_counts(net, x)
    assert_same(ours, counts_of(*by_snntorch(path), x))
    assert min(differing(ours[0], counts_of(*by_snntorch(path, soft=False), x)[0])) > 0.01, "with its leak of 0.9"


def test_sinabs_runs_the_file_to_the_same_counts(tmp_path: Path) -> None:
    net, x = network(), images()
    path = file_of(net, x, tmp_path)
    ours = own_counts(net, x)
    assert_same(ours, counts_of(*by_sinabs(path, len(x)), x))
    assert max(differing(ours[0], counts_of(*by_sinabs(path, len(x), soft=False), x)[0])) > 0.01


def test_norse_has_no_soft_reset_for_an_if(tmp_path: Path) -> None:
    net, x = network(), images()
    path = file_of(net, x, tmp_path)
    assert min(differing(own_counts(net, x)[0], counts_of(*by_norse(path), x)[0])) > 0.01
