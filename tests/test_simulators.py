"""NIR files in other simulators, and networks copied to SpikingJelly and back: the same counts."""

import subprocess
import sys
from pathlib import Path

import networks
import pytest
from extras import needs
from networks import differing, images, meeting, network, own_counts
from nir_simulators import by_nirtorch, by_sinabs, by_snntorch, by_spikingjelly, counts_of, file_of

pytestmark = pytest.mark.clients

EXAMPLE = Path(__file__).parents[1] / "python" / "examples" / "spikingjelly.py"


def test_networks_of_spikingjelly_are_copied_there_and_back() -> None:
    """The example compares every neuron of networks with IF and LIF neurons."""
    needs("spikingjelly")
    done = subprocess.run([sys.executable, EXAMPLE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("the same counts in both libraries") == 2


def test_nirtorch_runs_the_primitives_to_the_same_counts(tmp_path: Path) -> None:
    net, x = network(), images()
    path = file_of(net, x, tmp_path, neurons="primitives")
    networks.assert_same(own_counts(net, x), counts_of(*by_nirtorch(path), x))


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
    networks.assert_same(ours, counts_of(*run(path), x))
    assert least(differing(ours[0], counts_of(*run(path, soft=False), x)[0])) > 0.01


@pytest.mark.parametrize("name", SIMULATORS)
def test_a_simulator_has_the_same_counts_where_potentials_equal_the_threshold(name: str, tmp_path: Path) -> None:
    net, x = meeting(network()), images()
    networks.assert_same(own_counts(net, x), counts_of(*SIMULATORS[name][0](file_of(net, x, tmp_path)), x))
