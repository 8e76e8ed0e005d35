"""The cases: those of the performance contract, in the order of its table, and the cost of training over T."""

from ..case import Case
from . import calls, conv, conv_net, cost, events, memory, mlp, norm, scan

CASES: dict[str, Case] = {
    case.name: case
    for family in (
        mlp.CASES, conv.CASES, norm.CASES, conv_net.CASES, scan.CASES, calls.CASES, memory.CASES, events.CASES,
        cost.CASES,
    )
    for case in family
}  # fmt: skip
