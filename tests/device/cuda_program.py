"""What a run on a GPU holds, copies and waits for, counted without one (tests/device/fake_cuda.py).

    python -m tests.device.cuda_program CHECK ...

Says what is wrong as JSON on its last line, and before that what was counted.
"""

import json
import sys

from tests.device.cuda_guard import load

if __name__ == "__main__":
    load()
    from tests.device import cuda_checks

    print(json.dumps([line for name in sys.argv[1:] for line in cuda_checks.CHECKS[name]()]))
