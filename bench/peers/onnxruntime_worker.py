"""Time ONNX Runtime's MatMulNBits on random weights; runs inside onnxruntime's environment.

Serves bench/cpu.py through a pipe (see pipe.py). A model is a row of products of float32
activations by 4-bit weights with a float32 scale for every 32: accuracy level 0, so that the
activations are not rounded. A session is made again when its number of threads changes; its
threads stop spinning when it has run.
"""

import time

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper
from pipe import serve

BITS, BLOCK = 4, 32

models: dict[str, bytes] = {}
sessions: dict[str, tuple[int, onnxruntime.InferenceSession]] = {}
activations: dict[str, list[int]] = {}


def load(name: str, layers: list[tuple[int, int]], copies: int) -> float:
    """Make a model of `copies` of each (rows, columns); return its bits per weight."""
    random, nodes, outputs, stored = np.random.default_rng(0), [], [], {}
    for index, (rows, columns) in enumerate(layers * copies):
        blocks = columns // BLOCK
        code = random.integers(0, 256, (rows, blocks, BLOCK * BITS // 8), np.uint8)
        scale = random.random((rows, blocks), np.float32) / 100
        stored |= {f"code{index}": code, f"scale{index}": scale}
        given = [f"x{columns}", f"code{index}", f"scale{index}"]
        said = {"K": columns, "N": rows, "bits": BITS, "block_size": BLOCK, "accuracy_level": 0}
        outputs.append(helper.make_tensor_value_info(f"y{index}", TensorProto.FLOAT, None))
        nodes.append(
            helper.make_node("MatMulNBits", given, [f"y{index}"], domain="com.microsoft", **said)
        )
    activations[name] = sorted({columns for _, columns in layers})
    inputs = [
        helper.make_tensor_value_info(f"x{columns}", TensorProto.FLOAT, ["batch", columns])
        for columns in activations[name]
    ]
    tensors = [onnx.numpy_helper.from_array(array, key) for key, array in stored.items()]
    graph = helper.make_graph(nodes, name, inputs, outputs, tensors)
    versions = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=versions, ir_version=10)
    models[name] = model.SerializeToString()
    weights = sum(rows * columns for rows, columns in layers) * copies
    return 8 * sum(array.nbytes for array in stored.values()) / weights


def forward(name: str, batch: int, threads: int) -> float:
    """Return the seconds of all products of a model in turn, after another time."""
    if name not in sessions or sessions[name][0] != threads:
        sessions.pop(name, None)
        sessions[name] = threads, _session(models[name], threads)
    given = {f"x{n}": np.ones((batch, n), np.float32) for n in activations[name]}
    sessions[name][1].run(None, given)
    started = time.perf_counter()
    sessions[name][1].run(None, given)
    return time.perf_counter() - started


def _session(model: bytes, threads: int) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])


if __name__ == "__main__":
    serve({"load": load, "forward": forward})
