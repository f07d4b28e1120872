"""The MLflow store: where it is, a client of it, and how its failures read."""

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qamoe.config import settings
from qamoe.errors import UserError
from qamoe.tracking.provenance import main_checkout

SQLITE = "sqlite:///"
PARENT = "mlflow.parentRunId"  # the tag of a run by which MLflow shows it under another


def uri() -> str:
    """Where records go: MLFLOW_TRACKING_URI, or one SQLite file at the root of the main checkout."""
    return settings.tracking_uri() or f"{SQLITE}{main_checkout()}/mlflow.db"


def masked(text: str) -> str:
    """A text without the credentials of the addresses in it: before an @, which a password may hold too, and in a
    query."""
    text = re.sub(r"://[^\s/?#]*@|://[^\s/:@]+:[^\s@]*@", "://***@", text)
    return re.sub(r"([?&][^=&\s]*(?:password|secret|token|key)[^=&\s]*=)[^&\s]+", r"\1***", text, flags=re.IGNORECASE)


def connect(advice: str = "") -> Any:
    """An MlflowClient of the store, quiet. Raises UserError where the store does not answer."""
    import mlflow
    from mlflow import environment_variables as environment

    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # By itself MLflow tries for four minutes to reach a server that is down, at each call.
    for variable, value in (
        (environment.MLFLOW_HTTP_REQUEST_MAX_RETRIES, 2),
        (environment.MLFLOW_HTTP_REQUEST_TIMEOUT, 30),
        (environment.MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR, False),
        (environment.MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT, True),
    ):
        if not variable.is_set():
            variable.set(value)
    with store_errors_as_user_errors(advice):
        if uri().startswith(SQLITE):
            _make_database(Path(uri().removeprefix(SQLITE)))
        mlflow.set_tracking_uri(uri())
        mlflow.set_registry_uri(uri())
        client = mlflow.MlflowClient(uri(), uri())
        client.search_experiments(max_results=1)
    return client


def _make_database(path: Path) -> None:
    """Make the database aside and rename it: its migrations take seconds, and a kill within them would leave a file
    that MLflow can neither use nor repair. Whoever comes second waits."""
    import mlflow

    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with exclusive_lock():
        if not path.exists():
            aside = path.with_name(f"{path.name}.making")
            aside.unlink(missing_ok=True)
            mlflow.MlflowClient(f"{SQLITE}{aside}").search_experiments(max_results=1)
            aside.replace(path)


@contextmanager
def exclusive_lock() -> Iterator[None]:
    """Keep other processes of this machine out while a store that is a file is changed in several steps; a server's
    store has no such lock."""
    import fcntl

    if not uri().startswith(SQLITE):
        yield
        return
    folder = os.open(Path(uri().removeprefix(SQLITE)).parent, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)  # ends with the process, however that ends
        yield
    finally:
        os.close(folder)


@contextmanager
def store_errors_as_user_errors(advice: str = "") -> Iterator[None]:
    """Turn a failure of the store into one sentence."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:  # the last: no driver of this database
        raise UserError(
            f"The records at {masked(uri())} (MLFLOW_TRACKING_URI) cannot be used: {reason(error)}{advice}."
        ) from None


def reason(error: Exception) -> str:
    """What an exception says, short and without credentials."""
    return masked(" ".join(str(error).split())[:200]).rstrip(".") or type(error).__name__


def experiment_id(client: Any, name: str) -> str:
    """The experiment of that name, made where there is none. Raises UserError where it was deleted."""
    from mlflow.exceptions import MlflowException

    from qamoe.tracking import dashboard

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            experiment = client.get_experiment(
                client.create_experiment(name, artifact_location=_artifact_location(name))
            )
        except MlflowException:  # another process was first
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    if experiment.lifecycle_stage != "active":
        raise UserError(
            f"Experiment {name!r} at {masked(uri())} was deleted; restore it, or choose another registry.name."
        )
    dashboard.arrange(client, experiment)
    return experiment.experiment_id


def _artifact_location(name: str) -> str | None:
    """Beside the database where it is a file; a server knows its own place. MLflow's default depends on the folder
    that a process runs in, and a folder `mlruns` would make it take files for its store."""
    store = uri()
    if store.startswith(SQLITE):
        return (Path(store.removeprefix(SQLITE)).resolve().parent / "mlartifacts" / name).as_uri()
    if store.startswith(("http://", "https://")):
        return None
    return (main_checkout() / "mlartifacts" / name).as_uri()


def find(client: Any, **tags: str) -> Any | None:
    """The newest run, of any experiment, that has these tags (`a__b` stands for `a.b`), or None."""
    everywhere = [experiment.experiment_id for experiment in client.search_experiments()]
    wanted = " and ".join(f"tags.`{name.replace('__', '.')}` = '{value}'" for name, value in tags.items())
    runs = client.search_runs(everywhere, wanted, max_results=1, order_by=["attributes.start_time DESC"])
    return runs[0] if runs else None


def one_run(client: Any, experiment: str, name: str, tags: dict[str, str], further: dict[str, str]) -> tuple[str, bool]:
    """The run that others are children of: the oldest of an experiment with these tags, made with `further` where there
    is none, and whether it was made now. Where two machines make one at once, both take the first one's."""

    def oldest() -> list[str]:
        runs = client.search_runs([experiment], wanted, max_results=1, order_by=["attributes.start_time ASC"])
        return [run.info.run_id for run in runs]

    wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
    if runs := oldest():
        return runs[0], False
    with exclusive_lock():
        if runs := oldest():
            return runs[0], False
        created: str = client.create_run(experiment, tags=tags | further, run_name=name).info.run_id
        first = (oldest() or [created])[0]
    if first != created:
        client.delete_run(created)
    return first, first == created
