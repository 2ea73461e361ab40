"""Take a tiny model of every family the whole way, and write docs/FAMILIES.md.

    python bench/families.py [FAMILY ...] [--write] [--processes N]
    python bench/families.py [FAMILY ...] --stored bfloat16

Prints one row a family. A row that says "fails" is a fault of nearplane.
"""

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.families import table, zoo
from tests.families.outcome import Outcome, outcome

SOME = ["llama"]


def safe_outcome(family: str, stored: str) -> Outcome:
    """Return what becomes of a family, stored in the type of that name, a fault included."""
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        return outcome(family, stored=getattr(torch, stored))
    # whatever it is, the table shows it
    except Exception as error:
        return Outcome(
            family, f"fails: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("families", nargs="*", help="all if none is named")
    parser.add_argument("--write", action="store_true", help=f"write {table.PATH.name}")
    parser.add_argument("--processes", type=int, default=2)
    types = ["float32", "bfloat16", "float16"]
    parser.add_argument("--stored", choices=types, default=types[0], help="the type of the files")
    parser.add_argument("--tiny", action="store_true", help="one family only")
    asked = parser.parse_args()
    names = SOME if asked.tiny else asked.families or zoo.families()
    outcomes = []
    with ProcessPoolExecutor(asked.processes) as pool:
        for found in pool.map(partial(safe_outcome, stored=asked.stored), names):
            outcomes.append(found)
            print(found.row(), flush=True)
    if asked.write and not (asked.tiny or asked.families or asked.stored != types[0]):
        table.PATH.write_text(table.written(outcomes))


if __name__ == "__main__":
    main()
