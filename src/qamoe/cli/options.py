"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Params = Annotated[Path, typer.Option(help="The parameter file.")]
Out = Annotated[Path, typer.Option(help="The artifacts folder.")]
Model = Annotated[
    str | None,
    typer.Option(
        help="A registered model, models:/NAME@ALIAS or models:/NAME/VERSION"
        " (default: the champion of registry.name in the parameter file)."
    ),
]
Folder = Annotated[Path | None, typer.Option(help="The folder of a trained checkpoint, instead of a registered model.")]
NoTranscribe = Annotated[
    bool, typer.Option("--no-transcribe", help="Do not recognise the words of clips without a transcript.")
]


def model_address(model: str | None, folder: Path | None, params: Path) -> str:
    """Return `model`, or without it the address of the champion of registry.name; "" where a folder is given.

    Raises UserError where the parameter file is needed and cannot be read.
    """
    if model is not None or folder is not None:
        return model or ""
    from qamoe.registry.local_lookup import champion_address

    return champion_address(params)
