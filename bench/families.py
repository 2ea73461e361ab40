"""Take a tiny model of every family the whole way, and write docs/FAMILIES.md.

    python bench/families.py [FAMILY ...] [--write] [--processes N]

Prints one row a family. A row that says "fails" is a fault of nearplane.
"""

import argparse
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.families import table, zoo
from tests.families.outcome import Outcome, outcome

SOME = ["llama"]


def safe_outcome(family: str) -> Outcome:
    """Return what becomes of a family, a fault included."""
    import torch
    import transformers

    torch.set_num_threads(1)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    try:
        return outcome(family)
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
    parser.add_argument("--tiny", action="store_true", help="one family only")
    asked = parser.parse_args()
    names = SOME if asked.tiny else asked.families or zoo.families()
    outcomes = []
    with ProcessPoolExecutor(asked.processes) as pool:
        for found in pool.map(safe_outcome, names):
            outcomes.append(found)
            print(found.row(), flush=True)
    if asked.write and not asked.tiny and not asked.families:
        table.PATH.write_text(table.written(outcomes))


if __name__ == "__main__":
    main()
