"""Model cards, and uploading a checkpoint to the Hugging Face hub."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nearplane.export.checkpoint_reader import Checkpoint, open_checkpoint, read_json
from nearplane.export.published_files import (
    CARD,
    Contents,
    local_sources,
    published_files,
    without_paths,
)
from nearplane.report.reading import REPORT
from nearplane.types import NearplaneError, naming_errors


@dataclass(frozen=True)
class Base:
    """The model that a checkpoint was made of: its name on the hub, "" if it has none."""

    name: str
    licence: str = ""
    languages: tuple[str, ...] = ()


def base_of(checkpoint: Checkpoint) -> Base:
    """Return the base model: of what the card beside a local model says, or the one on the hub."""
    from huggingface_hub import HfApi, ModelCard

    report = checkpoint.directory / REPORT
    name = read_json(report).get("model") if report.is_file() else None
    name = name if isinstance(name, str) else ""
    path = Path(name).expanduser()
    if name and path.exists():
        card = (path if path.is_dir() else path.parent) / CARD
        data = ModelCard.load(card).data.to_dict() if card.is_file() else {}
        bases = data.get("base_model")
        # the card of a copy names what it is a copy of
        known = bases if isinstance(bases, str) else ""
        return Base(known, str(data.get("license") or ""), listed(data.get("language")))
    if not is_repo(name):
        return Base("")
    try:
        found = HfApi().model_info(name).card_data
    # without the hub the name is what is known, whatever the reason
    except Exception:
        found = None
    data = found.to_dict() if found is not None else {}
    return Base(name, str(data.get("license") or ""), listed(data.get("language")))


def is_repo(name: str) -> bool:
    """Whether a name is ORG/NAME on the hub."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if name.count("/") != 1 or name[0] in "./~":
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def listed(value: Any) -> tuple[str, ...]:
    """Return one string, or a list of some, as a tuple."""
    return (value,) if isinstance(value, str) else tuple(map(str, value or ()))


def card_of(checkpoint: Checkpoint, base: Base, repo: str, measured: Sequence[str] = ()) -> str:
    """Return the model card of a checkpoint.

    - `repo`: its name on the hub. `measured`: sentences on what was measured of it.
    """
    from huggingface_hub import ModelCard, ModelCardData

    settings = checkpoint.config["quantization_config"]
    recipe, entries = dict(settings.get("recipe") or {}), checkpoint.layers.values()
    weights = sum(int(entry["rows"]) * int(entry["columns"]) for entry in entries)
    bpw = 8 * sum(int(entry["bytes"]) for entry in entries) / max(weights, 1)
    size = sum(path.stat().st_size for path in checkpoint.directory.glob("*.safetensors"))
    method = str(recipe.get("method", "nearplane"))
    data = ModelCardData(
        base_model=base.name or None,
        base_model_relation="quantized" if base.name else None,
        library_name="nearplane",
        license=base.licence or None,
        language=list(base.languages) or None,
        pipeline_tag="text-generation",
        tags=["nearplane", method, f"{bpw:.2f}-bit"],
    )
    title = base.name or repo
    lines = [f"# {title.rpartition('/')[2]}, {bpw:.2f} bits a weight", ""]
    made = f"[{base.name}](https://huggingface.co/{base.name})" if base.name else "A model"
    version = settings.get("nearplane_version", "")
    how = f"quantized by nearplane {version} with the method {method}"
    if method == "imported":
        how = f"its {recipe.get('source')} integers as they were, coded by nearplane {version}"
    lines += [
        f"{made}, {how}: {size / 1e6:.1f} MB of weights.",
        "",
        "```python",
        "import nearplane as npl",
        "",
        f'model = npl.load("{repo}")  # a transformers model; weights are multiplied as stored',
        f'tokenizer = npl.load_tokenizer("{repo}")',
        "```",
        "",
        f'`nearplane run {repo} "..."` writes text, `vllm serve {repo}` serves it with nearplane '
        "installed beside vLLM.",
        "",
    ]
    lines += ["## Measured", "", *[f"- {each}" for each in measured], ""] * bool(measured)
    lines += [
        "## Recipe",
        "",
        "```json",
        json.dumps(shown(recipe, local_sources(checkpoint)), indent=2),
        "```",
        "",
    ]
    lines += [f"- {bpw:.4f} bits per weight of {weights:,} quantized weights"]
    lines += [f"- {certified(checkpoint)}", ""]
    return str(ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines)))


def shown(recipe: dict[str, Any], known: dict[str, str]) -> dict[str, Any]:
    """Return a recipe without the rate of every layer, and with names in place of paths."""
    found = {name: value for name, value in recipe.items() if name != "allocation"}
    return without_paths(found, known, {})


def certified(checkpoint: Checkpoint) -> str:
    """Return a sentence on how many layers have a bound of their error."""
    bounded = sum(entry.get("bound") is not None for entry in checkpoint.layers.values())
    return f"{bounded} of {len(checkpoint.layers)} layers have an error bound that holds"


@dataclass(frozen=True)
class Publication:
    """A checkpoint and what the hub gets of it: `files`, and a card.

    - `repo`: as ORG/NAME. `base`: the model that it was made of.
    - `shortened`: sentences on the paths of this machine that the files have no more.
    """

    checkpoint: Checkpoint
    repo: str
    base: Base
    files: Contents
    shortened: list[str]

    def card(self, measured: Sequence[str] = ()) -> str:
        """Return the model card; `measured` are sentences for it."""
        return card_of(self.checkpoint, self.base, self.repo, measured)

    def size_of(self, name: str) -> int:
        """Return the bytes of a file as it is published."""
        content = self.files[name]
        return len(content) if isinstance(content, bytes) else content.stat().st_size

    def upload(self, card: str, private: bool = False) -> None:
        """Put the files and a card on the hub; NearplaneError for what it answers."""
        from huggingface_hub import CommitOperationAdd, HfApi

        operations = [CommitOperationAdd(name, content) for name, content in self.files.items()]
        operations.append(CommitOperationAdd(CARD, card.encode()))
        with naming_errors(f"uploading to {self.repo}"):
            api = HfApi()
            api.create_repo(self.repo, private=private, exist_ok=True)
            message = f"Quantized by nearplane: {self.checkpoint.directory.resolve().name}"
            api.create_commit(self.repo, operations, commit_message=message)


def prepared(directory: str | Path, repo: str, licence: str = "") -> Publication:
    """Return what the hub would get of a checkpoint; asks it for the base model's card once.

    - `repo`: as ORG/NAME. `licence`: in place of the base model's.

    Raises NearplaneError for what is no checkpoint, and for what is no name.
    """
    if not is_repo(repo):
        raise NearplaneError(f"{repo!r} is no name on the hub: write ORG/NAME")
    checkpoint = open_checkpoint(directory)
    checkpoint.check_files()
    files, shortened = published_files(checkpoint)
    base = base_of(checkpoint)
    base = Base(base.name, licence or base.licence, base.languages)
    return Publication(checkpoint, repo, base, files, shortened)
