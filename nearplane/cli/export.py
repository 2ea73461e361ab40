"""export and formats."""

from typing import Annotated

import typer

from nearplane.cli.options import TrustRemoteCode


def export(
    directory: Annotated[str, typer.Argument(metavar="DIR", help="A checkpoint's directory")],
    out: Annotated[str, typer.Argument(metavar="OUT", help="A new or empty directory")],
    to: Annotated[str, typer.Option(help="The format: see nearplane formats")],
    trust_remote_code: TrustRemoteCode = False,
) -> None:
    """Write the checkpoint DIR to OUT in a format that other programs read."""
    from nearplane.cli.quiet import quiet
    from nearplane.export import formats

    quiet()
    written = formats.export(directory, out, to, trust_remote_code, typer.echo)
    size = sum(path.stat().st_size for path in written.rglob("*") if path.is_file())
    typer.echo(f"{out}: {size / 1e6:.1f} MB for {formats.FORMATS[to].title}")


def import_checkpoint(
    directory: Annotated[
        str, typer.Argument(metavar="DIR", help="A GPTQ, AWQ or compressed-tensors checkpoint")
    ],
    out: Annotated[str, typer.Argument(metavar="OUT", help="A new or empty directory")],
) -> None:
    """Write a checkpoint that another package quantized as one of nearplane, without rounding."""
    from nearplane.cli.quiet import quiet
    from nearplane.export.import_checkpoint import import_checkpoint

    quiet()
    import_checkpoint(directory, out, typer.echo)


def list_formats() -> None:
    """List the formats that a checkpoint can be exported to, and what each holds."""
    from nearplane.export.formats import FORMATS

    for name in sorted(FORMATS):
        typer.echo(f"{name}: {FORMATS[name].title}")
        typer.echo(f"    holds {FORMATS[name].holds}")
