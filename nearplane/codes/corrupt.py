"""The error that every decoder raises for bytes that break the rules of docs/formats/."""

from nearplane.types import NearplaneError


class CorruptError(NearplaneError):
    """The bytes are truncated, altered, or declare more than they hold."""


def require(fact: bool, sentence: str) -> None:
    """Raise CorruptError with `sentence` unless `fact` holds."""
    if not fact:
        raise CorruptError(sentence)
