"""The cases of the performance contract, in the order of its table."""

from ..case import Case
from . import conv, conv_net, memory, mlp, norm, scan

CASES: dict[str, Case] = {
    case.name: case
    for family in (mlp.CASES, conv.CASES, norm.CASES, conv_net.CASES, scan.CASES, memory.CASES)
    for case in family
}
