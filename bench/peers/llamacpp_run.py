"""Quantize a GGUF file by llama.cpp's own function; runs inside llama-cpp-python's environment.

    llamacpp_run.py PREPARED OUT --type IQ2_XXS [--threads 2] [--plain] [--again]

PREPARED is what gguf_of.py wrote: model.gguf and the importance matrix imatrix.npz, which is given
unless `--plain`; `--again` takes a file whose tensors are quantized already. The mixture of types
is the one that llama.cpp makes of the file type. Types whose blocks do not divide a tensor's
columns fall back to larger ones, by llama.cpp's rules. Prints one JSON line with the seconds of the
quantization.
"""

import argparse
import ctypes
import json
import time
from pathlib import Path

import llama_cpp
import numpy as np


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prepared", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--type", required=True, help="a file type, as Q4_K_M")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--plain", action="store_true", help="without the importance matrix")
    parser.add_argument("--again", action="store_true", help="of a quantized file")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread = args.threads
    params.allow_requantize = args.again
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{args.type}")
    if not args.plain:
        params.imatrix = importance(args.prepared / "imatrix.npz")
    failed = llama_cpp.llama_model_quantize(
        str(args.prepared / "model.gguf").encode(),
        str(args.out / "model.gguf").encode(),
        ctypes.byref(params),
    )
    if failed:
        raise SystemExit(f"llama_model_quantize returned {failed}")
    seconds = {"quantize": round(time.perf_counter() - started, 3)}
    print(json.dumps({"peer": "llamacpp", "seconds": seconds, "type": args.type}), flush=True)


def importance(path: Path) -> ctypes.Array:
    """Return the importance of every tensor's columns, ended by an entry without a name."""
    found = {name: np.ascontiguousarray(v, np.float32) for name, v in np.load(path).items()}
    entries = (llama_cpp.llama_model_imatrix_data * (len(found) + 1))()
    pointer = ctypes.POINTER(ctypes.c_float)
    for entry, (name, values) in zip(entries, found.items(), strict=False):
        entry.name, entry.size = name.encode(), values.size
        entry.data = values.ctypes.data_as(pointer)
    entries.kept = found  # the arrays must outlive the call
    return entries


if __name__ == "__main__":
    main()
