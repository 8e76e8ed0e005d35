"""Where γ of the batch norm starts: at a value that uses the counts' range."""


def initial_gamma(T: int, timing: str = "step") -> float:
    """The initial γ for a window of T steps, by the measurement in docs/initialisation.md.

    >>> initial_gamma(2), initial_gamma(8)
    (2.0, 3.0)
    >>> initial_gamma(2, "window"), initial_gamma(8, "window")
    (1.0, 2.0)
    """
    if timing == "window":
        return min(2.0, max(0.7, T / 2))
    return 2.0 if T <= 2 else 3.0
