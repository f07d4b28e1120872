"""`qamoe run`: one stage of dvc.yaml, without DVC."""

from pathlib import Path
from typing import Annotated

import typer

from qamoe.cli.options import Out, Params
from qamoe.pipeline.runner import run_stage

app = typer.Typer(no_args_is_help=True, help="Run one stage of the pipeline and print what it did as one line of JSON.")

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no log lines.")]
OneModel = Annotated[str | None, typer.Option(help="Only this model of `seeds` in params.yaml (default: all).")]


@app.command()
def extract(params: Params = Path("params.yaml"), out: Out = Path("artifacts"), quiet: Quiet = False) -> None:
    """Extract features from the corpus: text tokens, audio and vision frames."""
    from qamoe.pipeline import extract as stage

    run_stage("extract", stage.run, params, out, quiet)


@app.command()
def preprocess(params: Params = Path("params.yaml"), out: Out = Path("artifacts"), quiet: Quiet = False) -> None:
    """Standardise the features and split the clips."""
    from qamoe.pipeline import preprocess as stage

    run_stage("preprocess", stage.run, params, out, quiet)


@app.command()
def train(
    params: Params = Path("params.yaml"), out: Out = Path("artifacts"), model: OneModel = None, quiet: Quiet = False
) -> None:
    """Train the models of `seeds`. Finished seeds are kept; an interrupted one continues after its last epoch."""
    from qamoe.pipeline import train as stage

    run_stage("train", stage.run, params, out, quiet, model=model, selects_model=True, distributed=True)


@app.command()
def evaluate(
    params: Params = Path("params.yaml"), out: Out = Path("artifacts"), model: OneModel = None, quiet: Quiet = False
) -> None:
    """Measure the trained models on the test split, along the reliability spectrum."""
    from qamoe.pipeline import evaluate as stage

    run_stage("evaluate", stage.run, params, out, quiet, model=model, selects_model=True)


@app.command()
def report(params: Params = Path("params.yaml"), out: Out = Path("artifacts"), quiet: Quiet = False) -> None:
    """Write the report: a page, its numbers as files, and the headline table."""
    from qamoe.pipeline import report as stage

    run_stage("report", stage.run, params, out, quiet, named_sections=[])


@app.command()
def tune(params: Params = Path("params.yaml"), out: Out = Path("artifacts"), quiet: Quiet = False) -> None:
    """Search for better parameters of one model (`tune` in params.yaml); `qamoe accept-tuned` takes them over."""
    from qamoe.pipeline import tune as stage

    run_stage("tune", stage.run, params, out, quiet)
