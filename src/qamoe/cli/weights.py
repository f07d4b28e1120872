"""`qamoe weights`: pretrained weights, named and pinned (weights/table.py)."""

from pathlib import Path
from typing import Annotated

import typer

from qamoe.cli.options import Params
from qamoe.errors import UserError
from qamoe.terminal import printable
from qamoe.weights import store
from qamoe.weights.table import WEIGHTS

app = typer.Typer(no_args_is_help=True, help="Pretrained weights by name: list, fetch, verify.")


@app.command("list")
def list_weights() -> None:
    """List all known weights: size, licence, where they are, and their sources in order."""
    from rich.table import Table
    from rich.text import Text

    from qamoe.report.tables import stdout_console

    table = Table()
    for column in ("name", "MB", "licence", "here", "sources"):
        table.add_column(column, justify="right" if column == "MB" else "left")
    for name, entry in WEIGHTS.items():
        place = store.place(name)
        sources = "\n".join(f"{source}{'' if source.tried else ' (not tried)'}" for source in entry.sources)
        row = (name, _megabytes(name), entry.licence, "no" if place is None else printable(str(place)), sources)
        table.add_row(*(Text(cell) for cell in row))
    stdout_console().print(table)
    print("not tried: tested against a local server that speaks the protocol, never against the host itself")


@app.command()
def fetch(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME", help="Default: what the parameter file names.")
    ] = None,
    params: Params = Path("params.yaml"),
) -> None:
    """Fetch weights into the cache, from the first source that has them with the pinned SHA-256. Idempotent."""
    for name in names or _named(params):
        source = store.fetch(name)
        facts = f"{_megabytes(name)} MB, {WEIGHTS[name].licence}"
        origin = "here before" if source is None else f"from {source}"
        print(printable(f"weights {name}: {facts}, {origin}: {store.place(name)}"))


@app.command()
def verify() -> None:
    """Compute the SHA-256 of every file of the weights that are here. Exit code 1: one differs."""
    wrong = 0
    for name in WEIGHTS:
        if store.place(name) is None:
            print(f"weights {name}: not here")
            continue
        try:
            print(printable(f"weights {name}: as pinned: {store.folder(name)}"))
        except UserError as reason:
            wrong += 1
            print(printable(f"weights {name}: {reason}"))
    raise typer.Exit(int(wrong > 0))


def _megabytes(name: str) -> str:
    size = WEIGHTS[name].size
    return "unknown" if size is None else f"{size / 1e6:.1f}"


def _named(params: Path) -> list[str]:
    """Return the weights that a parameter file needs: those of its extractors and of its text encoder."""
    from qamoe.config import params as parameters

    chosen = parameters.load(params)
    extract = chosen.extract
    names = [name for block in (extract.text, extract.audio, extract.vision) for name in block.weights]
    encoder = chosen.models.encoders.text.encoder
    return list(dict.fromkeys([*names, *([encoder] if encoder in WEIGHTS else [])]))
