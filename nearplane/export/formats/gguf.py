"""A GGUF file: integers and steps as they are, in llama.cpp's block types."""

import math
import tempfile
from collections import Counter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nearplane.export.checkpoint_reader import Checkpoint
from nearplane.export.formats.format import Format, Says
from nearplane.export.load import load_tokenizer
from nearplane.export.output_directory import check_space
from nearplane.types import NearplaneError

FILE = "model.gguf"
TENSOR_BYTES = 100  # of an entry in the list of tensors, and what aligns its numbers
# llama.cpp's name of a file by the type of most of its weights
NAMES = {"Q2_K": "Q2_K", "Q3_K": "Q3_K_M", "Q4_K": "Q4_K_M", "Q5_K": "Q5_K_M"}


class Gguf(Format):
    """value = step · code − minimum in Q2_K to Q6_K, Q4_0 to Q8_0, IQ4_NL and IQ4_XS.

    A layer gets the smallest type that holds its integers and steps.
    """

    name = "gguf"
    title = "integers and steps as they are, in model.gguf: llama.cpp, ollama, LM Studio"
    holds = (
        "gguf (quantize --for gguf), rtn and gptq with groups of 32 · n columns, hptq, hrtn; "
        "families of docs/EXPORTS.md"
    )

    def check(self, checkpoint: Checkpoint) -> None:
        require_gguf()

    def write(self, checkpoint: Checkpoint, out: Path, trust_remote_code: bool, says: Says) -> None:
        from transformers import AutoConfig

        from nearplane.export.gguf.architecture import architecture_of
        from nearplane.export.gguf.tensors import TensorReader

        config = AutoConfig.from_pretrained(
            checkpoint.directory, trust_remote_code=trust_remote_code
        )
        tokenizer = load_tokenizer(checkpoint.directory, trust_remote_code)
        reader = TensorReader(checkpoint, config, architecture_of(config))
        write_file(reader, tokenizer, out / FILE, says)


def overhead(
    config: Any, tokenizer: Any, names: list[str], kept: dict[str, int]
) -> tuple[int, list[str], list[str]]:
    """Return the bytes of a file beside its tensors, and which of those are stored in float32.

    Then sentences on texts that llama.cpp cuts into other tokens than the tokenizer.

    - `names`: of the model's tensors. `tokenizer`: None is left out.
    - `kept`: axes of each tensor that is not quantized.

    Raises NearplaneError for a family, a tokenizer or a tensor that llama.cpp does not have.
    """
    require_gguf()
    import gguf

    from nearplane.export.gguf.architecture import (
        add_hyperparameters,
        architecture_of,
        rotation_factors,
    )
    from nearplane.export.gguf.tensors import EXPERT, ROUTER, SUFFIXES
    from nearplane.export.gguf.vocabulary import add_vocabulary

    arch = architecture_of(config).arch
    known = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    wide, differences, factors = [], [], rotation_factors(config)
    for name in names:
        theirs = known.get_name(EXPERT.sub(r"\1", name), try_suffixes=SUFFIXES)
        if name in kept and (kept[name] < 2 or (theirs or "").endswith(ROUTER)):
            wide.append(name)
        if theirs is None:
            raise NearplaneError(f"llama.cpp has no name for the tensor {name} of this family")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / FILE
        writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[arch])
        try:
            add_hyperparameters(writer, config)
            if tokenizer is not None:
                differences = add_vocabulary(writer, tokenizer, config.vocab_size)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
        finally:
            writer.close()
        size = path.stat().st_size + TENSOR_BYTES * len(names)
    return size + (0 if factors is None else factors.nbytes), wide, differences


def require_gguf() -> None:
    """Raise NearplaneError if the package gguf is not installed."""
    if find_spec("gguf") is None:
        raise NearplaneError('GGUF files need the package gguf: pip install "nearplane[gguf]"')


def write_file(reader: Any, tokenizer: Any, path: Path, says: Says) -> None:
    """Write metadata, vocabulary and tensors; what each type holds is said."""
    import gguf

    from nearplane.export.gguf.architecture import add_hyperparameters
    from nearplane.export.gguf.vocabulary import add_vocabulary, general_name

    tensors = sorted(reader.stored(), key=lambda each: each.name)
    config, weights = reader.config, Counter()
    for each in tensors:
        weights[each.kind.name] += math.prod(each.shape)
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[reader.architecture.arch])
    try:
        writer.add_type("model")
        writer.add_name(general_name(reader.checkpoint.directory.resolve().name, tokenizer))
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
        writer.add_file_type(file_type(weights))
        add_hyperparameters(writer, config)
        differences = add_vocabulary(writer, tokenizer, config.vocab_size)
        for each in tensors:
            add_info(writer, each)
        check_space(path.parent, sum(bytes_of(each) for each in tensors))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for each in tensors:
            writer.write_tensor_data(reader.data(each))
    finally:
        writer.close()
    parts = (f"{count:,} in {kind}" for kind, count in weights.most_common())
    says(f"weights: {', '.join(parts)}")
    for sentence in differences:
        says(f"tokens: {sentence}")


def bytes_of(tensor: Any) -> int:
    """Return the bytes of a tensor in its type."""
    import gguf

    columns, size = gguf.GGML_QUANT_SIZES[tensor.kind]
    return math.prod(tensor.shape) // columns * size


def add_info(writer: Any, tensor: Any) -> None:
    """Announce a tensor; the writer wants the shape of its bytes where it is quantized."""
    import gguf
    import numpy as np

    plain = {gguf.GGMLQuantizationType.F32: np.float32, gguf.GGMLQuantizationType.F16: np.float16}
    dtype = np.dtype(plain.get(tensor.kind, np.uint8))
    raw = None if tensor.kind in plain else tensor.kind
    shape = list(tensor.shape)
    if raw is not None:
        columns, size = gguf.GGML_QUANT_SIZES[tensor.kind]
        shape[-1] = shape[-1] // columns * size
    writer.add_tensor_info(tensor.name, shape, dtype, bytes_of(tensor), raw)


def file_type(weights: Counter[str]) -> int:
    """Return llama.cpp's number for a file whose weights are mostly of one type."""
    import gguf

    quantized = [kind for kind, _ in weights.most_common() if kind not in ("F32", "F16", "BF16")]
    kind = quantized[0] if quantized else "F16"
    return gguf.LlamaFileType[f"MOSTLY_{NAMES.get(kind, kind)}"]
