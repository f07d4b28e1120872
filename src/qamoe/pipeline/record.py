"""Training folders made elsewhere -> MLflow: pulled from a remote, or trained without a store. Idempotent."""

from pathlib import Path

from qamoe.errors import UserError


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
