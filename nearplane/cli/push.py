"""push: a checkpoint on the Hugging Face hub, with a model card."""

from typing import Annotated

import typer

from nearplane.cli.options import TrustRemoteCode


def push(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="A checkpoint")],
    repo: Annotated[str, typer.Argument(metavar="ORG/NAME", help="Its name on the hub")],
    private: Annotated[bool, typer.Option("--private", help="Only for those with access")] = False,
    licence: Annotated[
        str, typer.Option("--license", help="In place of the base model's, as apache-2.0")
    ] = "",
    text: Annotated[
        str | None, typer.Option(help="Measure the perplexity of this text for the card")
    ] = None,
    against: Annotated[
        str | None, typer.Option(metavar="MODEL", help="And the divergence from this model")
    ] = None,
    windows: Annotated[int, typer.Option(help="At most so many windows of --text")] = 16,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only show the card and the files")
    ] = False,
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Upload DIR to the hub, with a card that says how it was made and how to run it."""
    from nearplane.cli.quiet import quiet
    from nearplane.export.hub import push as upload
    from nearplane.types import NearplaneError

    if against is not None and text is None:
        raise NearplaneError("--against needs --text, on which the two are compared")
    quiet()
    card, files = upload(directory, repo, licence=licence, dry_run=True)
    if text is not None:
        measured = measure(directory, text, against, windows, trust_remote_code)
        card, files = upload(directory, repo, licence=licence, measured=measured, dry_run=True)
    else:
        measured = []
    if dry_run:
        typer.echo(card)
        for path in files:
            typer.echo(f"{path.stat().st_size:>14,}  {path.relative_to(directory)}")
        return
    if "\nlicense:" not in card:
        typer.echo("no licence of the base model is known: --license states one", err=True)
    upload(directory, repo, private=private, licence=licence, measured=measured)
    size = sum(path.stat().st_size for path in files)
    typer.echo(f"{repo}: {len(files) + 1} files, {size / 1e6:.1f} MB")


def measure(
    directory: str, text: str, against: str | None, windows: int, trusted: bool
) -> list[str]:
    """Return sentences on a checkpoint's perplexity, and on its divergence from a model."""
    from nearplane.cli.evaluate import CONTEXT, open_any, results
    from nearplane.cli.progress import watching
    from nearplane.evaluate.perplexity import WindowOptions, text_windows
    from nearplane.model.positions import position_limit

    model, tokenizer = open_any(directory, True, "float32", trusted)
    options = WindowOptions(min(CONTEXT, position_limit(model) or CONTEXT), None, windows)
    reference = None if against is None else open_any(against, True, "float32", trusted)[0]
    with watching() as watcher:
        split = text_windows(text, tokenizer, options)
        return results(model, split, options, reference, watcher.progress)
