"""Silence progress bars and warnings of transformers and huggingface_hub; errors still show."""

import logging
import warnings
from typing import Any


def quiet() -> None:
    """Silence transformers and huggingface_hub; call this before a model is opened."""
    from huggingface_hub.utils import disable_progress_bars
    from transformers import modeling_gguf_pytorch_utils
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    disable_progress_bars()
    # this module uses tqdm directly, which `disable_progress_bar` does not reach
    gguf: Any = modeling_gguf_pytorch_utils
    gguf.tqdm = transformers_logging.tqdm
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)
