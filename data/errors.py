"""The one error of this package's data side."""

from __future__ import annotations


class DataError(ValueError):
    """Market data that cannot be used as it is; the message names the file and says what to do."""
