"""The `qamoe` command: arguments only; each command calls one function."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal

import typer

from qamoe.config import settings
from qamoe.errors import UserError, exit_on_user_error

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="QA-MoE: train, evaluate, promote, serve.",
)

Params = Annotated[Path, typer.Option(help="The parameter file.")]
Format = Literal["terminal", "md", "latex", "csv"]
Out = Annotated[Path, typer.Option(help="The artifacts folder.")]
Model = Annotated[str, typer.Option(help="A registered model: models:/NAME@ALIAS or models:/NAME/VERSION.")]
Folder = Annotated[Path | None, typer.Option(help="A trained checkpoint instead, without records.")]


def main() -> None:
    """Run the command; a refusal becomes one sentence on stderr and exit code 2."""
    settings.go_offline()
    with exit_on_user_error("qamoe"):
        app()


@app.command()
def table(
    out: Out = Path("artifacts"),
    format: Annotated[Format, typer.Option(help="How the table is written.")] = "terminal",
    slice: Annotated[str | None, typer.Option(help="One slice in the field's own form, such as missing.")] = None,
    peers: Annotated[
        Literal["mosi", "mosei"] | None, typer.Option(help="Others' published figures beside ours (slice missing).")
    ] = None,
) -> None:
    """Print the headline table of what was evaluated, or the field's table of one slice."""
    from qamoe.report import benchmark_table, results, table_formats, tables

    cells = results.read_cells(results.evaluations(out / "evaluate"))
    if slice is None and peers is not None:
        raise UserError("The published rows are averages over slice missing: add --slice missing.")
    if slice is None and format == "terminal":
        tables.print_headline(tables.headline(cells))
        return
    benchmark = benchmark_table.headline(cells) if slice is None else benchmark_table.of_slice(cells, slice, peers)
    if format == "terminal":
        table_formats.terminal(benchmark)
    else:
        print(table_formats.FORMATS[format](benchmark), end="")


@app.command()
def compare(
    a: Annotated[str, typer.Argument(help="A model, such as qamoe.")],
    b: Annotated[str, typer.Argument(help="The model that it is compared with.")],
    slice: Annotated[
        str | None, typer.Option(help="A slice, a part of one (alone-text-noise) or a cell; without it, every slice.")
    ] = None,
    metric: Annotated[str | None, typer.Option(help="By default mae, or accuracy.")] = None,
    out: Out = Path("artifacts"),
) -> None:
    """Print how much A's metric exceeds B's on the same clips, with 95 % intervals over sources."""
    from qamoe.report import pairwise

    pairwise.show(pairwise.between(out / "evaluate", a, b, slice, metric))


@app.command()
def promote(
    params: Params = Path("params.yaml"),
    out: Out = Path("artifacts"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what the gate would decide.")] = False,
) -> None:
    """Ask the gate whether the best trained model becomes the champion."""
    from qamoe.pipeline import promote as stage
    from qamoe.pipeline.known_names import load_params

    _alone("promote", out, lambda: stage.run(load_params(params), out, dry_run))


@app.command()
def models(params: Params = Path("params.yaml")) -> None:
    """Print the registered versions: which is champion, what was decided, and their headline numbers."""
    from qamoe.pipeline.known_names import load_params
    from qamoe.registry import versions

    versions.show(load_params(params, sections=[]).registry.name)


@app.command()
def rollback(params: Params = Path("params.yaml"), out: Out = Path("artifacts")) -> None:
    """Make the previous champion the champion again; a second rollback undoes the first."""
    from qamoe.pipeline.known_names import load_params
    from qamoe.registry import versions

    _alone("promote", out, lambda: print(versions.rollback(load_params(params, sections=[]).registry.name)))


@app.command()
def record(folders: list[Path], params: Params = Path("params.yaml")) -> None:
    """Record training folders made elsewhere in MLflow."""
    from qamoe.pipeline import record as stage
    from qamoe.pipeline.known_names import load_params

    stage.run(folders, load_params(params, sections=[]).registry.name)


@app.command()
def experiment(name: str) -> None:
    """Run params.yaml overlaid by experiments/NAME.yaml into artifacts-NAME/."""
    from qamoe.pipeline import experiment as stage

    stage.run(name)


@app.command()
def sample(
    out: Path,
    clips: Annotated[int, typer.Option(min=4)] = 240,
    seed: int = 7,
    task: Annotated[str, typer.Option(help="regression or four-classes")] = "regression",
) -> None:
    """Generate a sample corpus of real media files."""
    from qamoe.data.synthetic.corpus import generate

    generate(out, clips, seed, task, settings.workers())


@app.command()
def ingest(
    folder: Annotated[Path, typer.Argument(help="A folder of new clips with a manifest.csv.")],
    data: Annotated[Path, typer.Option(help="The corpus of raw clips that they go into.")] = Path("data"),
    params: Params = Path("params.yaml"),
) -> None:
    """Take the new clips of a folder into data/, with their manifest rows."""
    from qamoe.data.ingest import ingest
    from qamoe.pipeline.known_names import load_params

    ingested = ingest(folder, data, load_params(params, sections=["extract"]).extract.task)
    if ingested.left_sample_remote:
        print(f"{data}.dvc: deleted the line 'remote: sample'; {data}/ holds more than the generated corpus now, and")
        print("needs a remote of your own: dvc remote add --default team ADDRESS")
    print(f"{ingested.new} new clips, {ingested.known} known before")
    if ingested.new:
        print(f"next: dvc add {data}")


@app.command()
def score(
    source: Annotated[Path, typer.Argument(help="A folder of media, or a manifest.csv.")],
    out: Annotated[Path, typer.Option(help="The folder of scores.parquet.")] = Path("artifacts-score"),
    model: Model = "models:/qa-moe@champion",
) -> None:
    """Score the clips of a folder with the champion; what was scored before is kept."""
    from qamoe.pipeline import score as stage

    _alone("score", out, lambda: stage.run(source, out, model))


@app.command()
def predict(
    clips: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="CLIP...",
            help="Films and sound files, folders of such, or csv files with a column path (clip_id, start_s, end_s and"
            " text may stand beside it).",
        ),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            help="What is said in the one clip, or words alone. Without it a .srt or .txt of the clip's name beside it"
            " is read; without any, text counts as missing."
        ),
    ] = None,
    window: Annotated[
        float | None,
        typer.Option(
            metavar="S",
            help="Cut clips longer than S seconds into windows of S seconds and answer each. Words go with a window by"
            " the times of a .srt; those of a .txt or csv cannot be placed and are left out, --text is refused.",
        ),
    ] = None,
    model: Model = "models:/qa-moe@champion",
    folder: Folder = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Lines of JSON, as a pipe gets them, in a terminal too.")
    ] = False,
) -> None:
    """Predict clips: score or class, interval, and how far each modality was trusted.

    A table in a terminal, a line of JSON for each clip or window in a pipe. Exit code 0: every clip has an answer; 1:
    some have none, and the reasons are given; 2: nothing was answered.
    """
    from qamoe.cli import predict as terminal

    if not terminal.predict(clips or [], text, window, model, folder, as_json or not sys.stdout.isatty()):
        raise typer.Exit(1)


@app.command()
def export(
    path: Annotated[Path, typer.Argument(help="The file to write; its name ends in .pt2.")],
    model: Model = "models:/qa-moe@champion",
    folder: Folder = None,
) -> None:
    """Write a model as one file that torch reads without this project (torch.export)."""
    from qamoe.serving.export import export
    from qamoe.serving.model_loader import open_model

    export(open_model(model, folder).trained, path)
    print(f"{path}: {path.stat().st_size >> 20} MiB; docs/operations.md says what it takes and gives")


@app.command()
def serve(
    model: Model = "models:/qa-moe@champion",
    folder: Folder = None,
    clips: Annotated[Path | None, typer.Option(help="A folder of raw clips to offer some of as samples.")] = None,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free one.")] = 8000,
) -> None:
    """Answer over HTTP, with a page to see what the model does."""
    from qamoe.inference.extraction_worker import Limits
    from qamoe.serving.api import serve

    serve(model, folder, clips, host, port, Limits())


def _alone(stage: str, out: Path, run: Callable[[], None]) -> None:
    from qamoe.pipeline.runner import single_instance

    with single_instance(out / f".{stage}.lock"):
        run()


@app.command()
def check(
    path: Path,
    kind: Annotated[str | None, typer.Option(help="The kind of corpus (default: by the files that are there).")] = None,
    params: Params = Path("params.yaml"),
) -> None:
    """Look at a corpus and say what is wrong with it. Exit code 0: nothing; 1: warnings; 2: errors."""
    from rich.console import Console
    from rich.progress import track

    from qamoe.data import validate
    from qamoe.pipeline.known_names import load_params

    console = Console(stderr=True)
    findings = validate.check(
        path,
        load_params(params, sections=["extract"]).extract,
        kind,
        lambda files: track(files, "media", console=console, transient=True, disable=not console.is_terminal),
    )
    marked = [f"{what}: {line}" for what, lines in findings.wrong.items() for line in lines]
    for line in [*findings.told, *marked]:
        print("".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in line))
    print(", ".join(f"{len(lines)} {what}{'' if len(lines) == 1 else 's'}" for what, lines in findings.wrong.items()))
    raise typer.Exit(findings.exit_code)


if __name__ == "__main__":
    main()
