"""The one error for bytes that are not what a format's document says."""

from nearplane.types import NearplaneError


class CorruptError(NearplaneError):
    """Bytes are truncated, altered, or promise more than they hold."""


def require(fact: bool, sentence: str) -> None:
    """Raise CorruptError with `sentence` unless `fact` holds."""
    if not fact:
        raise CorruptError(sentence)
