"""Measuring takes place in a process of its own, because allocator and thread pool take their settings at the start.

Two settings decide whether two runs agree. An allocator that gives memory back makes every training step fault its
pages in anew: the same step then takes 9 ms or 13. Threads that spin while they wait use up the other core, and their
waiting counts as process time.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from .case import Quantity


def environment(threads: int, quantity: Quantity) -> dict[str, str]:
    """The variables of a measuring process."""
    count = str(threads)
    keep_memory = {"MALLOC_TRIM_THRESHOLD_": str(1 << 40), "MALLOC_MMAP_MAX_": "0", "MALLOC_TOP_PAD_": str(1 << 26)}
    return_memory = {"MALLOC_TRIM_THRESHOLD_": str(1 << 16), "MALLOC_MMAP_THRESHOLD_": str(1 << 16)}
    return {
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "OMP_WAIT_POLICY": "PASSIVE",
        "MALLOC_ARENA_MAX": "1",
        **(return_memory if quantity == "peak" else keep_memory),
    }


def in_own_process(case: str, quantity: Quantity, threads: int, quick: bool, rivals: list[str]) -> dict[str, Any]:
    """The result of :mod:`tandem_snn.bench.worker`.

    Raises:
        subprocess.CalledProcessError: the process failed; it has said why on stderr.
    """
    request = {"case": case, "threads": threads, "quick": quick, "rivals": rivals}
    done = subprocess.run(
        [sys.executable, "-m", "tandem_snn.bench.worker", json.dumps(request)],
        env={**os.environ, **environment(threads, quantity)},
        stdout=subprocess.PIPE,
        check=True,
    )
    result: dict[str, Any] = json.loads(done.stdout)
    return result
