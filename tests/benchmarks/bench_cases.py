"""The cases of `tandem-snn bench`, each of this package's ways and the ANN by itself."""

from __future__ import annotations

from functools import lru_cache

import pytest

from tandem_snn.bench.cases import CASES, Workload

WAYS = ("frozen", "tandem", "ANN")
TIMED = [(c.name, way) for c in CASES.values() if c.quantity == "time" for way in WAYS if way in c.rivals]


@lru_cache(maxsize=1)
def workload(name: str) -> Workload:
    return CASES[name].build()


@pytest.mark.parametrize(("name", "way"), TIMED)
def test_case(benchmark, name, way):
    made = workload(name)
    benchmark.extra_info["rates"] = {layer: round(rate.spikes, 4) for layer, rate in made.rates.items()}
    run = made.candidates[way]().run
    run(0)
    benchmark(run, 1)
