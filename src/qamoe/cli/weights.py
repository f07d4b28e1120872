"""`qamoe weights`: pretrained weights, named and pinned (weights/table.py)."""

from typing import Annotated

import typer

from qamoe.weights import store
from qamoe.weights.table import WEIGHTS

app = typer.Typer(no_args_is_help=True, help="Pretrained weights: what is known, fetch them, verify them.")


@app.command("list")
def list_weights() -> None:
    """List the known weights: size, licence, whether they are here, and their sources in order."""
    for name in WEIGHTS:
        print(name)


@app.command()
def fetch(names: Annotated[list[str], typer.Argument(metavar="NAME...")]) -> None:
    """Fetch weights into the cache, from the first source whose files have the pinned digests."""
    for name in names:
        source = store.fetch(name)
        print(name, source)
