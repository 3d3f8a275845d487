"""What this room says of representations that cannot be compared, or only with a reservation."""


class RepresentationError(ValueError):
    """A representation cannot be compared as asked: its shape, values, number of data points, rank or device is wrong.

    The message is one sentence that names the argument and says what to do.
    """


class DegenerateCCAWarning(UserWarning):
    """The ranks of two layers together exceed n - 1: some of their correlations are exactly 1, whatever they hold."""
