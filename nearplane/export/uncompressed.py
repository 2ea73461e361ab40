"""What a checkpoint stores as the model has it: everything but the compressed layers' weights."""

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

# keys of a configuration that say where a model came from, or how it was stored there
OF_THE_SOURCE = ("quantization_config", "_name_or_path", "_model_name_or_path")


def uncompressed_tensors(
    model: Any, layers: Collection[str], loader: BlockLoader
) -> Iterator[tuple[str, Tensor]]:
    """Yield all tensors but the weights of `layers`, tied ones once; their biases are among them.

    Experts of which no part is in `layers` are stored together, as the model's family has them.
    Blocks that lie on disk are loaded one after the other, after what is outside of them.
    """
    apart = {name for name, module in model.named_modules() if has_part(module, name, layers)}
    if isinstance(loader, InMemory):
        join_experts_(model, apart)
        yield from without_weights(model.state_dict(), layers, model).items()
        return
    within, blocks = find_blocks(model)
    state = {n: t for n, t in model.state_dict().items() if not n.startswith(f"{within}.")}
    yield from without_weights(state, layers, model).items()
    for index, block in enumerate(blocks):
        prefix = f"{within}.{index}."
        with loader.loaded(index):
            join_experts_(block, {name.removeprefix(prefix) for name in apart})
            yield from without_weights(block.state_dict(prefix=prefix), layers, model).items()


def has_part(module: nn.Module, name: str, layers: Collection[str]) -> bool:
    """Whether a module is a mixture of experts of which a layer is compressed."""
    return isinstance(module, Experts) and any(layer.startswith(f"{name}.") for layer in layers)


def without_weights(
    state: dict[str, Tensor], layers: Collection[str], model: "PreTrainedModel"
) -> dict[str, Tensor]:
    """Return tensors of a model's state without the weights of `layers`; tied ones once."""
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    weights = {f"{layer}.weight" for layer in layers}
    kept = {name: tensor for name, tensor in state.items() if name not in weights}
    return remove_tied_weights_from_state_dict(kept, model)


def save_uncompressed(model: "PreTrainedModel", tokenizer: Any, out: str | Path) -> None:
    """Write weights, configuration and tokenizer to `out`, a directory that transformers opens.

    transformers refuses to save a model that came from a GGUF file, although its weights are dense
    by then; opening such a file takes long, so that whoever needs it twice wants a directory.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    state = without_weights(model.state_dict(), (), model)
    tensors = {name: tensor.detach().contiguous() for name, tensor in state.items()}
    save_file(tensors, out / fmt.SINGLE, metadata=fmt.METADATA)
    tokenizer.save_pretrained(out)
    (out / fmt.CONFIG).write_bytes(fmt.json_bytes(config_of_its_own(model)))


def config_of_its_own(model: "PreTrainedModel") -> dict[str, Any]:
    """Return the model's configuration without what is true of its source only."""
    config = {k: part for k, part in model.config.to_dict().items() if k not in OF_THE_SOURCE}
    dtype = name_of(model.dtype)
    return config | {"architectures": [type(model).__name__], "dtype": dtype}
