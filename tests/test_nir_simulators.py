"""NIR: other simulators run the exported file to the same spike counts."""

from __future__ import annotations

from pathlib import Path

import pytest
from networks import assert_same, differing, images, meeting, own_counts
from nir_simulators import by_nirtorch, by_norse, by_sinabs, by_snntorch, by_spikingjelly, counts_of, file_of, network

pytestmark = pytest.mark.clients


def test_nirtorch_runs_the_primitives_to_the_same_counts(tmp_path: Path) -> None:
    net, x = network(), images()
    path = file_of(net, x, tmp_path, neurons="primitives")
    assert_same(own_counts(net, x), counts_of(*by_nirtorch(path), x))


SIMULATORS = {
    "SpikingJelly": (by_spikingjelly, min),  # its import resets to 0
    "snnTorch": (by_snntorch, min),  # leaks a tenth
    "sinabs": (lambda path, **options: by_sinabs(path, len(images()), **options), max),  # fires several times a step
}


@pytest.mark.parametrize("name", SIMULATORS)
def test_a_simulator_runs_the_file_to_the_same_counts(name: str, tmp_path: Path) -> None:
    """With its neurons put right; as its import makes them, the counts are others."""
    run, least = SIMULATORS[name]
    net, x = network(), images()
    path, ours = file_of(net, x, tmp_path), own_counts(net, x)
    assert_same(ours, counts_of(*run(path), x))
    assert least(differing(ours[0], counts_of(*run(path, soft=False), x)[0])) > 0.01


@pytest.mark.parametrize("name", SIMULATORS)
def test_a_simulator_has_the_same_counts_where_potentials_equal_the_threshold(name: str, tmp_path: Path) -> None:
    net, x = meeting(network()), images()
    assert_same(own_counts(net, x), counts_of(*SIMULATORS[name][0](file_of(net, x, tmp_path)), x))


def test_norse_has_no_soft_reset_for_an_if(tmp_path: Path) -> None:
    net, x = network(), images()
    path = file_of(net, x, tmp_path)
    assert min(differing(own_counts(net, x)[0], counts_of(*by_norse(path), x)[0])) > 0.01
