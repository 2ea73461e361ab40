"""The tensors that a checkpoint stores uncompressed: embeddings, norms, biases, skipped layers."""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save_file
from torch import Tensor, nn

from nearplane.export import checkpoint_format as fmt
from nearplane.model.block_loading import BlockLoader, InMemory
from nearplane.model.blocks import find_blocks
from nearplane.model.compute_dtype import name_of
from nearplane.model.experts import Experts, join_experts_

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# keys of a model's configuration that say where it was loaded from, or how it was quantized there
SOURCE_KEYS = ("quantization_config", "_name_or_path", "_model_name_or_path")


def uncompressed_tensors(
    model: Any, layers: Collection[str], loader: BlockLoader
) -> Iterator[tuple[str, Tensor]]:
    """Yield name and tensor of the state dict but for the weights of `layers`; tied ones once.

    Biases of `layers` are among them. Where no expert of a mixture is in `layers`, its experts are
    yielded as the fused 3-D tensors of the original model. Tensors outside the blocks come first;
    with a `loader` that reads from disk, one block is in memory at a time.
    """
    split = {n for n, module in model.named_modules() if has_compressed(module, n, layers)}
    if isinstance(loader, InMemory):
        join_experts_(model, split)
        yield from without_weights(model.state_dict(), layers, model).items()
        return
    parent, blocks = find_blocks(model)
    state = {n: t for n, t in model.state_dict().items() if not n.startswith(f"{parent}.")}
    yield from without_weights(state, layers, model).items()
    for index, block in enumerate(blocks):
        prefix = f"{parent}.{index}."
        with loader.loaded(index):
            join_experts_(block, {name.removeprefix(prefix) for name in split})
            yield from without_weights(block.state_dict(prefix=prefix), layers, model).items()


def has_compressed(module: nn.Module, name: str, layers: Collection[str]) -> bool:
    """Whether module `name` is a mixture of experts with at least one expert in `layers`."""
    return isinstance(module, Experts) and any(layer.startswith(f"{name}.") for layer in layers)


def without_weights(
    state: dict[str, Tensor], layers: Collection[str], model: "PreTrainedModel"
) -> dict[str, Tensor]:
    """Return a state dict without the weights of `layers`, and with one of any tied tensors."""
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    weights = {f"{layer}.weight" for layer in layers}
    # other layers may be tied to them
    tied = {state[name].data_ptr() for name in weights & state.keys()} - {0}
    others = {
        name: tensor
        for name, tensor in state.items()
        if name not in weights and tensor.data_ptr() not in tied
    }
    return remove_tied_weights_from_state_dict(others, model)


def save_uncompressed(model: "PreTrainedModel", tokenizer: Any, out: str | Path) -> None:
    """Write weights, configuration and tokenizer to `out`, a directory that transformers reads.

    `save_pretrained` of transformers refuses a model that was loaded from a GGUF file, although its
    weights are dequantized by then. Loading GGUF is slow, so a model that is used twice is stored.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    state = without_weights(model.state_dict(), (), model)
    tensors = {name: tensor.detach().contiguous() for name, tensor in state.items()}
    save_file(tensors, out / fmt.SINGLE, metadata=fmt.METADATA)
    tokenizer.save_pretrained(out)
    (out / fmt.CONFIG).write_bytes(fmt.json_bytes(config_without_source(model)))


def config_without_source(model: "PreTrainedModel") -> dict[str, Any]:
    """Return the model's configuration without the keys that describe where it was loaded from."""
    config = {k: part for k, part in model.config.to_dict().items() if k not in SOURCE_KEYS}
    config = fmt.special_floats(config)
    dtype = name_of(model.dtype)
    return config | {"architectures": [type(model).__name__], "dtype": dtype}
