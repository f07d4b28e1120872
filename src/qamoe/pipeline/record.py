"""Training folders made elsewhere -> MLflow: pulled from a remote, or trained without a store. Idempotent."""

import argparse
import logging
import sys
from pathlib import Path

from qamoe.config import settings
from qamoe.errors import UserError, exit_on_user_error
from qamoe.pipeline import runner
from qamoe.pipeline.known_names import load_params


def run(folders: list[Path], experiment: str) -> None:
    """Record each finished checkpoint, and its evaluation where artifacts/evaluate has one beside artifacts/train.

    Raises UserError where a folder holds no finished checkpoint (before anything is recorded) or the store does not
    answer.
    """
    from qamoe.models.checkpoint_config import CONFIG
    from qamoe.tracking.mlflow_store import connect, store_errors_as_user_errors
    from qamoe.tracking.runs import log_evaluation, record_training

    for folder in folders:
        if not (folder / CONFIG).is_file():
            raise UserError(
                f"{folder} is no finished checkpoint: {CONFIG} is missing; allowed is a folder as train makes."
            )
    client = connect()
    for folder in folders:
        with store_errors_as_user_errors():
            run_id = record_training(client, folder, experiment)
            evaluated = evaluation_of(folder)
            if evaluated is not None:
                log_evaluation(client, folder, evaluated, experiment)
        print(f"{folder}: run {run_id}" + (", evaluated" if evaluated else ""))


def evaluation_of(folder: Path) -> Path | None:
    """OUT/evaluate/MODEL/SEED of OUT/train/MODEL/SEED, where it is whole."""
    model, seed = folder.resolve().parts[-2:]
    evaluation = folder.resolve().parents[2] / "evaluate" / model / seed
    return evaluation if all((evaluation / name).is_file() for name in ("cells.parquet", "digest")) else None


def main() -> None:
    """The command; a refusal becomes one sentence on stderr and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m qamoe.pipeline.record")
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER", help="artifacts/train/MODEL/SEED")
    parser.add_argument("--params", type=Path, default=Path("params.yaml"), help="names the experiment: registry.name")
    arguments = parser.parse_args()
    settings.go_offline()
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    runner.log.setLevel(logging.INFO)
    with exit_on_user_error("record"):
        run(arguments.folders, load_params(arguments.params, sections=[]).registry.name)


if __name__ == "__main__":
    main()
