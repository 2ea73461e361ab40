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
    from nearplane.cli.eval_settings import EvalSettings
    from nearplane.cli.evaluate import measured_sentences
    from nearplane.cli.quiet import quiet
    from nearplane.export.hub import prepared
    from nearplane.types import NearplaneError

    if against is not None and text is None:
        raise NearplaneError("--against needs --text, on which the two are compared")
    quiet()
    found = prepared(directory, repo, licence)
    measured = []
    if text is not None:
        settings = EvalSettings([text], against=against, windows=windows)
        measured = measured_sentences(directory, settings, trust_remote_code)
    card = found.card(measured)
    if dry_run:
        typer.echo(card)
        for name in found.files:
            typer.echo(f"{found.size_of(name):>14,}  {name}")
    for sentence in found.shortened:
        typer.echo(sentence, err=True)
    if dry_run:
        return
    if "\nlicense:" not in card:
        typer.echo("no licence of the base model is known: --license states one", err=True)
    found.upload(card, private)
    size = sum(map(found.size_of, found.files))
    typer.echo(f"{repo}: {len(found.files) + 1} files, {size / 1e6:.1f} MB")
