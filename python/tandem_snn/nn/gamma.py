"""Where γ of the batch norm starts: at a value that uses the counts' range."""


def initial_gamma(T: int) -> float:
    """The initial γ for a window of T steps, by the measurement in docs/initialisation.md.

    >>> tnn.initial_gamma(8)
    3.0
    """
    return 3.0
