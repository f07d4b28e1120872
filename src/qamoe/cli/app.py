"""The `qamoe` command: arguments only; each command calls one function."""

import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer.core import TyperGroup

from qamoe.cli import run, weights
from qamoe.cli.options import Folder, Model, NoTranscribe, Out, Params, model_address
from qamoe.config import settings
from qamoe.config.params import registry_name
from qamoe.errors import UserError, exit_on_user_error
from qamoe.process_lifetime import end_on_sigterm
from qamoe.terminal import log_to_stderr, open_streams, printable


class _Commands(TyperGroup):
    """The commands; Ctrl-C ends each with a sentence, where typer would say nothing."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            print("qamoe: stopped.", file=sys.stderr)
            sys.exit(130)


app = typer.Typer(
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="QA-MoE: train, evaluate, promote, serve.",
)
app.add_typer(run.app, name="run", rich_help_panel="Pipeline")
app.add_typer(weights.app, name="weights", rich_help_panel="Pipeline")

PIPELINE, DATA, RESULTS, REGISTRY, CHAMPION = "Pipeline", "Data", "Results", "Registry", "Using a model"
Format = Literal["terminal", "md", "latex", "csv"]


def main() -> None:
    """Run the command; a UserError becomes one sentence on stderr and exit code 2."""
    open_streams()
    settings.go_offline()
    end_on_sigterm()
    with exit_on_user_error("qamoe"):
        settings.check()
        app()


def _log(level: int = logging.WARNING) -> None:
    log_to_stderr()
    logging.getLogger("qamoe").setLevel(level)


def _alone(stage: str, out: Path, work: Callable[[], None]) -> None:
    from qamoe.pipeline.runner import single_instance

    with single_instance(out / f".{stage}.lock"):
        work()


@app.command(rich_help_panel=PIPELINE)
def experiment(
    name: Annotated[str, typer.Argument(help="The name of a file in experiments/, without .yaml.")],
    plan: Annotated[bool, typer.Option("--plan", help="Only write artifacts-NAME/params.yaml and dvc.yaml.")] = False,
    search: Annotated[
        bool, typer.Option("--search", help="Run its search, instead of the stages up to report.")
    ] = False,
) -> None:
    """Run the DVC pipeline artifacts-NAME/dvc.yaml: dvc.yaml with params.yaml overlaid by experiments/NAME.yaml."""
    from qamoe.pipeline import experiment as stage

    if plan:
        stage.write(name, search)
    else:
        stage.run(name, search)


@app.command(rich_help_panel=PIPELINE)
def accept_tuned(params: Params = Path("params.yaml"), out: Out = Path("artifacts")) -> None:
    """Write the best parameters of the search into params.yaml and print the changed lines."""
    from qamoe.pipeline.accept_tuned import accept

    print(accept(out / "tune" / "best_params.yaml", params), end="")


@app.command(rich_help_panel=DATA)
def check(
    path: Annotated[Path, typer.Argument(help="A corpus: a folder or a file.")],
    kind: Annotated[str | None, typer.Option(help="The kind of corpus (default: detected from its files).")] = None,
    params: Params = Path("params.yaml"),
) -> None:
    """Check a corpus and list every fault with its file and line. Writes nothing.

    Exit code 0: no fault; 1: warnings; 2: errors.
    """
    from rich.console import Console
    from rich.progress import track

    from qamoe.data import validate
    from qamoe.pipeline.known_names import load_params

    console = Console(stderr=True)
    loaded = load_params(params, sections=["extract"])
    findings = validate.check(
        path,
        loaded.extract,
        kind,
        lambda files: track(files, "media", console=console, transient=True, disable=not console.is_terminal),
        loaded.preprocess.max_frames.text,
    )
    marked = [f"{what}: {line}" for what, lines in findings.wrong.items() for line in lines]
    for line in [*findings.summary, *marked]:
        print(printable(line))
    print(", ".join(f"{len(lines)} {what}{'' if len(lines) == 1 else 's'}" for what, lines in findings.wrong.items()))
    raise typer.Exit(findings.exit_code)


@app.command(rich_help_panel=DATA)
def ingest(
    folder: Annotated[Path, typer.Argument(help="A folder of new clips with a manifest.csv.")],
    data: Annotated[Path, typer.Option(help="The corpus of media files to add them to.")] = Path("data"),
    params: Params = Path("params.yaml"),
) -> None:
    """Add new clips and their manifest rows to a corpus. Idempotent."""
    from qamoe.data.ingest import ingest
    from qamoe.pipeline.known_names import load_params

    ingested = ingest(folder, data, load_params(params, sections=["extract"]).extract.task)
    if ingested.left_sample_remote:
        print(f"{data}.dvc: removed the line 'remote: sample', because {data}/ now holds more than the sample corpus.")
        print("Add a DVC remote of your own: dvc remote add --default team ADDRESS")
    print(f"{ingested.new} new clips, {ingested.known} known before")
    if ingested.new:
        print(printable(f"next: dvc add {data}"))


@app.command(rich_help_panel=DATA)
def sample(
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    clips: Annotated[int, typer.Option(min=4)] = 240,
    seed: int = 7,
    task: Annotated[str, typer.Option(help="regression or four-classes")] = "regression",
) -> None:
    """Generate a sample corpus of real media files."""
    from qamoe.data.synthetic.corpus import generate

    generate(out, clips, seed, task, settings.workers())


@app.command(rich_help_panel=RESULTS)
def table(
    out: Out = Path("artifacts"),
    format: Annotated[Format, typer.Option(help="The output format.")] = "terminal",
    slice: Annotated[str | None, typer.Option(help="One slice in the form that papers use, such as missing.")] = None,
    peers: Annotated[
        Literal["mosi", "mosei"] | None, typer.Option(help="Add the published figures of other models (slice missing).")
    ] = None,
) -> None:
    """Print the headline table of all evaluated models, or one slice in the form that papers use."""
    from qamoe.report import benchmark_table, results, table_formats, tables

    cells = results.read_cells(results.evaluations(out / "evaluate"))
    if slice is None and peers is not None:
        raise UserError("--peers needs --slice missing: the published rows are averages over that slice.")
    if slice is None and format == "terminal":
        tables.print_headline(tables.headline(cells))
        return
    benchmark = benchmark_table.headline(cells) if slice is None else benchmark_table.of_slice(cells, slice, peers)
    if format == "terminal":
        table_formats.terminal(benchmark)
    else:
        print(table_formats.FORMATS[format](benchmark), end="")


@app.command(rich_help_panel=RESULTS)
def compare(
    a: Annotated[str, typer.Argument(help="A model, such as qamoe.")],
    b: Annotated[str, typer.Argument(help="The model to compare it with.")],
    slice: Annotated[
        str | None,
        typer.Option(help="A slice, a part of one (alone-text-noise) or a cell (default: every slice)."),
    ] = None,
    metric: Annotated[str | None, typer.Option(help="A metric (default: mae, or accuracy for classes).")] = None,
    out: Out = Path("artifacts"),
) -> None:
    """Print the difference of a metric, A minus B, on the same clips with 95 % intervals over sources."""
    from qamoe.report import pairwise

    pairwise.show(pairwise.between(out / "evaluate", a, b, slice, metric))


@app.command(rich_help_panel=RESULTS)
def diagnose(
    model: Annotated[str, typer.Argument(help="A model that estimates r, such as qamoe.")],
    seed: Annotated[int | None, typer.Option(help="One of its training seeds (default: the mean over all).")] = None,
    out: Out = Path("artifacts"),
) -> None:
    """Print what a model loses if clips exchange their r, and gains if r follows corruption or correctness.

    Exit code 1: the model estimates no r, or it was not evaluated on slice mixed.
    """
    from qamoe.report import quality_diagnostic

    try:
        diagnosis = quality_diagnostic.of_model(out / "evaluate", model, seed)
    except UserError as reason:
        print(f"qamoe: {printable(str(reason))}", file=sys.stderr)
        raise typer.Exit(1) from None
    quality_diagnostic.show(diagnosis)


@app.command(rich_help_panel=REGISTRY)
def promote(
    params: Params = Path("params.yaml"),
    out: Out = Path("artifacts"),
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the decision; record nothing.")] = False,
    model: Annotated[str | None, typer.Option(help="A model of params.yaml (default: qamoe).")] = None,
    seed: Annotated[int | None, typer.Option(help="One of its seeds (default: the best in validation).")] = None,
    run: Annotated[str | None, typer.Option(help="Instead of a model: the id of an MLflow training run.")] = None,
    version: Annotated[
        int | None, typer.Option(min=1, max=2**31 - 1, help="Instead of a model: a registered version.")
    ] = None,
) -> None:
    """Submit a trained checkpoint to the promotion gate; if it passes, it becomes the champion."""
    from qamoe.pipeline import promote as stage
    from qamoe.pipeline.known_names import load_params

    options = {"--model": model, "--seed": seed, "--run": run, "--version": version}
    given = [option for option, value in options.items() if value is not None]
    if len(given) > 1 and given != ["--model", "--seed"]:
        raise UserError(f"{' and '.join(given)} exclude each other; use --run, --version, or --model with --seed.")
    _log(logging.INFO)
    chosen = stage.Chosen(model or stage.BEST.model, seed, run, version)
    _alone("promote", out, lambda: stage.run(load_params(params), out, dry_run, chosen))


@app.command(rich_help_panel=REGISTRY)
def rollback(params: Params = Path("params.yaml")) -> None:
    """Make the previous champion the champion again; a second rollback undoes the first."""
    from qamoe.registry import versions

    print(versions.rollback(registry_name(params)))


@app.command(rich_help_panel=REGISTRY)
def versions(params: Params = Path("params.yaml")) -> None:
    """List the registered versions: the champion, each decision of the promotion gate, and the headline metrics."""
    from qamoe.registry import versions as registered

    registered.show(registry_name(params))


@app.command(rich_help_panel=REGISTRY)
def record(
    folders: Annotated[list[Path], typer.Argument(help="Training folders, such as artifacts/train/qamoe/1.")],
    params: Params = Path("params.yaml"),
) -> None:
    """Record training folders in MLflow that were trained elsewhere or without records. Idempotent."""
    from qamoe.pipeline import record as stage

    _log(logging.INFO)
    stage.run(folders, registry_name(params))


@app.command(rich_help_panel=REGISTRY)
def relink() -> None:
    """After the project folder was moved or copied, make its records name the files where they are now. Idempotent."""
    from qamoe.tracking.relink import relink

    print(printable(relink()))


@app.command(rich_help_panel=REGISTRY)
def evaluate_champion(params: Params = Path("params.yaml"), out: Out = Path("artifacts")) -> None:
    """Measure the champion on the present test split and record it in MLflow."""
    from qamoe.pipeline import evaluate_champion as stage
    from qamoe.pipeline.known_names import load_params

    _log(logging.INFO)
    _alone("evaluate_champion", out, lambda: stage.run(load_params(params), out))


@app.command(rich_help_panel=CHAMPION)
def predict(
    clips: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="CLIP...",
            help="Video and audio files, folders of them, or csv files with a column path (and optionally clip_id,"
            " start_s, end_s, text and audio_track).",
            readable=False,  # an unreadable clip costs itself alone
        ),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            help="The words of a single clip, or text alone. Without it, a transcript with the clip's name (.srt, .vtt,"
            " Whisper's .json, .txt) or a text track in the file is read; without that, the words are recognised in the"
            " clip's voice."
        ),
    ] = None,
    window: Annotated[
        float | None,
        typer.Option(
            metavar="S",
            help="Cut clips longer than S seconds into windows of S seconds and predict each. Words of a .srt go to the"
            " window of their time; words of a .txt or csv have no times and are left out; --text is refused.",
        ),
    ] = None,
    audio_track: Annotated[
        str | None,
        typer.Option(
            metavar="TRACK",
            help="Read this audio track: its number (from 1), language (such as eng) or title; otherwise the default"
            " one.",
        ),
    ] = None,
    model: Model = None,
    folder: Folder = None,
    params: Params = Path("params.yaml"),
    as_json: Annotated[
        bool, typer.Option("--json", help="Print lines of JSON in a terminal too, as in a pipe.")
    ] = False,
    no_transcribe: NoTranscribe = False,
) -> None:
    """Predict clips: score or class, interval, and the trust in each modality.

    Prints a table in a terminal, one line of JSON per clip or window in a pipe. Exit code 0: every clip has a
    prediction; 1: some have none, with the reasons; 2: none has.
    """
    from qamoe.cli import predict as terminal

    address = model_address(model, folder, params)
    as_json = as_json or not sys.stdout.isatty()
    if not terminal.predict(clips or [], text, window, address, folder, as_json, not no_transcribe, audio_track):
        raise typer.Exit(1)


@app.command(rich_help_panel=CHAMPION)
def score(
    source: Annotated[Path, typer.Argument(help="A folder of media, or a manifest.csv.")],
    out: Annotated[Path, typer.Option(help="The folder of scores.parquet and drift.csv.")] = Path("artifacts-score"),
    model: Model = None,
    params: Params = Path("params.yaml"),
    no_transcribe: NoTranscribe = False,
) -> None:
    """Score the clips of a folder into a parquet file and test them for drift. Earlier scores are kept."""
    from qamoe.pipeline import score as stage

    _log()
    address = model_address(model, None, params)
    _alone("score", out, lambda: stage.run(source, out, address, not no_transcribe))


@app.command(rich_help_panel=CHAMPION)
def serve(
    model: Model = None,
    folder: Folder = None,
    params: Params = Path("params.yaml"),
    clips: Annotated[Path | None, typer.Option(help="A folder of media files to offer as samples.")] = None,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free port.")] = 8000,
    allowed_hosts: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="A name under which clients reach the server, if it differs from --host, such as that of a proxy in"
            " front of it. Repeat the option for several names.",
        ),
    ] = None,
    no_transcribe: NoTranscribe = False,
) -> None:
    """Serve predictions over HTTP, with a web page."""
    from qamoe.inference.extraction_worker import Limits
    from qamoe.serving.api import serve

    serve(
        model_address(model, folder, params),
        folder,
        clips,
        host,
        port,
        Limits(),
        allowed_hosts or [],
        not no_transcribe,
    )


@app.command(rich_help_panel=CHAMPION)
def export(
    path: Annotated[Path, typer.Argument(help="The file to write; its name ends in .pt2.")],
    model: Model = None,
    folder: Folder = None,
    params: Params = Path("params.yaml"),
) -> None:
    """Write a model as one file that torch reads without this project (torch.export)."""
    from qamoe.serving.export import export
    from qamoe.serving.model_loader import open_model

    export(open_model(model_address(model, folder, params), folder).trained, path)
    print(
        f"{printable(str(path))}: {path.stat().st_size >> 20} MiB;"
        " docs/guides/scoring.md describes its inputs and outputs"
    )
