"""Record training folders in MLflow that were pulled from a remote or trained without a store. Idempotent."""

from pathlib import Path

from qamoe.errors import UserError
from qamoe.terminal import printable


def run(folders: list[Path], experiment: str) -> None:
    """Record each finished checkpoint, and its evaluation if artifacts/evaluate (next to artifacts/train) has one.

    Raises UserError if a folder does not hold a finished checkpoint (before anything is recorded), or if the store
    does not answer.
    """
    from qamoe.models.checkpoint_config import CONFIG
    from qamoe.tracking.mlflow_store import connect, store_errors_as_user_errors
    from qamoe.tracking.runs import log_evaluation, record_training

    for folder in folders:
        if not (folder / CONFIG).is_file():
            raise UserError(
                f"{folder} is not a finished checkpoint: {CONFIG} is missing; give a folder that train wrote."
            )
    client = connect()
    for folder in folders:
        with store_errors_as_user_errors():
            run_id = record_training(client, folder, experiment)
            evaluation = find_evaluation(folder)
            if evaluation is not None:
                log_evaluation(client, folder, evaluation, experiment)
        print(f"{printable(str(folder))}: run {run_id}" + (", evaluated" if evaluation else ""))


def find_evaluation(folder: Path) -> Path | None:
    """Return OUT/evaluate/MODEL/SEED of OUT/train/MODEL/SEED if it is complete, else None."""
    model, seed = folder.resolve().parts[-2:]
    evaluation = folder.resolve().parents[2] / "evaluate" / model / seed
    return evaluation if all((evaluation / name).is_file() for name in ("cells.parquet", "digest")) else None
