"""What a checkpoint stores as the model has it: everything but the compressed layers' weights."""

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def remaining_tensors(
    model: "PreTrainedModel",
    layers: Collection[str],
    among: Callable[[str], bool] = lambda name: True,
) -> dict[str, Tensor]:
    """Return name -> tensor of all but the weights of `layers`; tied tensors once.

    Biases of `layers` are among them.

    - `among`: which names are asked for.
    """
    from transformers.modeling_utils import remove_tied_weights_from_state_dict

    weights = {f"{layer}.weight" for layer in layers}
    state = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if name not in weights and among(name)
    }
    return remove_tied_weights_from_state_dict(state, model)
