"""vLLM serves nearplane checkpoints: `vllm serve DIR`, once nearplane is installed beside it.

| file | idea |
|---|---|
| config | which of vLLM's layers are compressed, and what is refused |
| shards | which rows and columns of which record one process holds |
| linear | a layer's records: allocated, loaded, cut, laid out, multiplied |
| product | the product of several records, one operator to torch.compile |

vLLM finds `register` by the entry point `vllm.general_plugins`. docs/VLLM.md is for users.
"""

import importlib
import warnings


def register() -> None:
    """Tell vLLM of the checkpoints' quantization; it calls this in every process it starts.

    Calling it again changes nothing. A failure is a warning: whoever starts vLLM may not care about
    nearplane at all.
    """
    try:
        importlib.import_module("nearplane.export.vllm.config")
    except Exception as error:
        warnings.warn(f"vLLM will not read nearplane checkpoints: {error!r}", stacklevel=2)
