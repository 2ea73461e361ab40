"""Read the next block's weights from the disk while the block before it runs and is rounded."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from nearplane.walk.background import Background, Job


def read_ahead(
    order: Sequence[int], read: Callable[[int], Any], thread: Background
) -> Iterator[tuple[int, Any]]:
    """Yield every index of `order` with what `read` returns for it, one index ahead of its use.

    At most two blocks are held: the one that was yielded, and the next. One that is called again is
    not read ahead, since its weights may be in use now: it comes with None.
    """
    seen: set[int] = set()
    job = started(order[:1], seen, read, thread)
    for call, index in enumerate(order):
        found = None if job is None else job.result()
        seen.add(index)
        job = started(order[call + 1 : call + 2], seen, read, thread)
        yield index, found
        del found


def started(
    following: Sequence[int], seen: set[int], read: Callable[[int], Any], thread: Background
) -> Job | None:
    """Hand in the reading of the index that follows, if there is one that was not seen yet."""
    new = [index for index in following if index not in seen]
    return thread.start(read, *new) if new else None
