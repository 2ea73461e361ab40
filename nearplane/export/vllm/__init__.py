"""The plugin through which vLLM serves nearplane checkpoints: `vllm serve DIR`.

vLLM calls `register`, which pyproject.toml names as an entry point in `vllm.general_plugins`.
docs/VLLM.md is for users. vLLM itself is imported by `config` and `linear_method` alone.

- Comes in: a checkpoint's config.json and its records, as vLLM's own loader reads them.
- Goes out: for each of vLLM's linear layers, a method that multiplies by the rows and columns that
  this tensor-parallel process holds.

Read `config.py` first.

| file | what it does |
|---|---|
| config | tells vLLM which layers are compressed, and refuses models that it cannot serve |
| linear_method | loads, cuts and multiplies by the records of one layer |
| shards | which rows and columns of which records one process holds |
| product | the product with several records, as one operator for torch.compile |

To support another kind of layer, add a method beside `NearplaneHeadMethod`, and return it from
`get_quant_method` in `config.py`.
"""

import importlib
import warnings


def register() -> None:
    """Register nearplane's quantization; vLLM calls this in every process that it starts.

    Calling it again changes nothing. A failure is only a warning, since vLLM calls every installed
    plugin, also where no nearplane checkpoint is served.
    """
    try:
        importlib.import_module("nearplane.export.vllm.config")
    except Exception as error:
        warnings.warn(f"vLLM will not read nearplane checkpoints: {error!r}", stacklevel=2)
