"""Square roots are those of the processor, which rounds to nearest."""

import math

import pytest
import torch

from tandem_ext.rounding import square_root


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_square_root(dtype):
    x = torch.cat([torch.rand(20000, dtype=dtype) * 10.0**e for e in range(-30, 31, 10)])
    want = [math.sqrt(v) for v in x.tolist()]
    assert square_root(x).tolist() == torch.tensor(want, dtype=torch.float64).to(dtype).tolist()


def test_roots_in_the_middle_of_two_numbers_but_for_their_last_bits():
    """Of squares and their neighbours; of 1 - 2^-53, whose root is 2^-109 below the middle of two numbers."""
    near = [1 + k * 2.0**-52 for k in range(200)] + [1 - k * 2.0**-53 for k in range(200)]
    x = torch.tensor([scale * v for scale in (0.25, 1.0, 2.0, 4.0, 9.0) for v in near], dtype=torch.float64)
    assert square_root(x).tolist() == [math.sqrt(v) for v in x.tolist()]


def near_middles():
    """Integers, float64 too, whose roots are beside the middle of two numbers, nearer than 2^-47 of their distance.

    The root of r² + r - d is d / 2r below r + 1/2. For every even d there is an even and an odd r, modulo 2^53, for
    which it is a multiple of 2^53, and so a float64: Newton's step finds them, for the slope 2r + 1 has an inverse.
    """
    found = []
    for d in range(-40, 42, 2):
        for r in (0, 1):
            for _ in range(6):
                r = (r - (r * r + r - d) * pow(2 * r + 1, -1, 2**53)) % 2**53
            if r >= 2**52:
                found.append(r * r + r - d)
    return found


def test_roots_beside_the_middle_of_two_numbers():
    squares = near_middles()
    x = torch.tensor(squares, dtype=torch.float64)
    assert [int(v) for v in x.tolist()] == squares
    assert square_root(x).tolist() == [math.sqrt(v) for v in squares]


@pytest.mark.parametrize("towards", [0.0, math.inf])
def test_a_root_that_is_off_by_one_is_mended(towards, monkeypatch):
    x = torch.rand(20000, dtype=torch.float64) + 0.5
    exact = torch.tensor([math.sqrt(v) for v in x.tolist()], dtype=torch.float64)
    monkeypatch.setattr(torch.Tensor, "sqrt", lambda _: exact.nextafter(torch.full_like(exact, towards)))
    assert torch.equal(square_root(x), exact)


def test_special_values():
    x = torch.tensor([0.0, math.inf, 1e308, 5e-324, -1.0, math.nan], dtype=torch.float64)
    root = square_root(x)
    assert root[:4].tolist() == [0.0, math.inf, math.sqrt(1e308), math.sqrt(5e-324)]
    assert root[4:].isnan().all()
