"""serve: the OpenAI chat and completions API, by the server of transformers or of vLLM."""

import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from nearplane.cli.options import Arithmetic, TrustRemoteCode
from nearplane.types import NearplaneError

AUTO, TRANSFORMERS, VLLM = "auto", "transformers", "vllm"
SERVERS = (AUTO, TRANSFORMERS, VLLM)
NEEDED = ("fastapi", "uvicorn", "openai")  # by transformers' server


def serve(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="A checkpoint")],
    host: Annotated[str, typer.Option(help="The address to listen on")] = "localhost",
    port: Annotated[int, typer.Option(help="The port to listen on")] = 8000,
    server: Annotated[
        str, typer.Option(help="transformers or vllm; auto is vllm where it is installed")
    ] = AUTO,
    arithmetic: Arithmetic = "auto",
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Answer requests of OpenAI's chat and completions API with the model in DIR."""
    from nearplane.export.checkpoint_reader import open_checkpoint
    from nearplane.model.compute_dtype import arithmetic_for, check_arithmetic, name_of

    if server not in SERVERS:
        raise NearplaneError(f"--server must be one of {', '.join(SERVERS)}, not {server!r}")
    if not 0 < port < 1 << 16:
        raise NearplaneError(f"--port must lie between 1 and 65535, not {port}")
    check_arithmetic(arithmetic)
    checkpoint = open_checkpoint(directory)
    checkpoint.check_files()
    stored = checkpoint.stored_dtype()
    dtype = "auto" if stored is None else name_of(arithmetic_for(stored, arithmetic))
    chosen = server if server != AUTO else VLLM if find_spec("vllm") else TRANSFORMERS
    where = str(Path(directory).resolve())
    if chosen == VLLM:
        start_vllm(where, host, port, dtype if arithmetic != "auto" else "auto", trust_remote_code)
    else:
        start_transformers(where, host, port, dtype, trust_remote_code)


def start_transformers(where: str, host: str, port: int, dtype: str, trusted: bool) -> None:
    """Run the server of transformers in this process, until it is interrupted."""
    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise NearplaneError(
            f'the server of transformers needs {", ".join(missing)}: pip install "nearplane[serve]"'
        )
    from huggingface_hub.constants import HF_HUB_CACHE
    from transformers.cli.serve import Serve

    import nearplane.export.transformers  # noqa: F401 - registers the format

    # it lists what is there where it is asked for its models, and fails without one
    Path(HF_HUB_CACHE).mkdir(parents=True, exist_ok=True)
    typer.echo(f"http://{host}:{port}/v1 answers for {where}; Ctrl-C ends it")
    Serve(force_model=where, host=host, port=port, dtype=dtype, trust_remote_code=trusted)


def start_vllm(where: str, host: str, port: int, dtype: str, trusted: bool) -> None:
    """Become `vllm serve`, whose plugin loads the checkpoint."""
    beside = Path(sys.executable).with_name("vllm")
    program = str(beside) if beside.exists() else shutil.which("vllm")
    if program is None:
        raise NearplaneError(
            "vllm is not installed here: pip install vllm, or --server transformers"
        )
    words = [program, "serve", where, "--host", host, "--port", str(port), "--dtype", dtype]
    os.execv(program, words + ["--trust-remote-code"] * trusted)
