"""The `qamoe` command: arguments only; each command calls one function."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from qamoe import settings
from qamoe.errors import Refused

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="QA-MoE: train, evaluate, promote, serve.",
)

Params = Annotated[Path, typer.Option(help="The parameter file.")]
Out = Annotated[Path, typer.Option(help="The artifacts folder.")]
Model = Annotated[str, typer.Option(help="A registered model: models:/NAME@ALIAS or models:/NAME/VERSION.")]
Folder = Annotated[Path | None, typer.Option(help="A trained checkpoint instead, without records.")]


def main() -> None:
    """Run the command; a refusal becomes one sentence on stderr and exit code 2."""
    settings.go_offline()
    try:
        app()
    except Refused as refusal:
        print(f"qamoe: {refusal}", file=sys.stderr)
        sys.exit(2)


@app.command()
def table(out: Out = Path("artifacts")) -> None:
    """Print the headline table of what was evaluated."""
    from qamoe.reporting import results, tables

    found = results.read(out / "evaluate", out / "train")
    tables.print_headline(tables.headline(found.cells))


@app.command()
def promote(params: Params = Path("params.yaml"), out: Out = Path("artifacts")) -> None:
    """Ask the gate whether the best trained model becomes the champion."""
    from qamoe.params import load
    from qamoe.stages import promote as stage

    _alone("promote", out, lambda: stage.run(load(params), out))


@app.command()
def record(folders: list[Path], params: Params = Path("params.yaml")) -> None:
    """Record training folders made elsewhere in MLflow."""
    from qamoe.params import load
    from qamoe.stages import record as stage

    stage.run(folders, load(params).registry.name)


@app.command()
def experiment(name: str) -> None:
    """Run params.yaml overlaid by experiments/NAME.yaml into artifacts-NAME/."""
    from qamoe.stages import experiment as stage

    stage.run(name)


@app.command()
def sample(
    out: Path,
    clips: Annotated[int, typer.Option(min=4)] = 240,
    seed: int = 7,
    task: Annotated[str, typer.Option(help="regression or four-classes")] = "regression",
) -> None:
    """Generate a sample corpus of real media files."""
    from qamoe.corpora.sample import generate

    generate(out, clips, seed, task, settings.workers())


@app.command()
def predict(
    clip: Annotated[Path | None, typer.Argument(help="A film or a sound file.")] = None,
    text: Annotated[str | None, typer.Option(help="What is said in it.")] = None,
    model: Model = "models:/qa-moe@champion",
    folder: Folder = None,
    as_json: Annotated[bool, typer.Option("--json", help="The answer as JSON.")] = False,
) -> None:
    """Predict one clip: its score, the interval, and how far each modality was trusted."""
    from qamoe.serving import terminal

    terminal.predict(clip, text, model, folder, as_json)


@app.command()
def serve(
    model: Model = "models:/qa-moe@champion",
    folder: Folder = None,
    clips: Annotated[Path | None, typer.Option(help="A folder of raw clips to offer some of as samples.")] = None,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free one.")] = 8000,
) -> None:
    """Answer over HTTP, with a page to see what the model does."""
    from qamoe.serving.server import serve
    from qamoe.serving.uploads import Limits

    serve(model, folder, clips, host, port, Limits())


def _alone(stage: str, out: Path, run: Callable[[], None]) -> None:
    from qamoe.stages.entry import alone

    with alone(out / f".{stage}.lock"):
        run()


if __name__ == "__main__":
    main()
