"""Connect to the MLflow store, and turn its failures into user errors."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from qamoe import files
from qamoe.config import settings
from qamoe.errors import UserError
from qamoe.tracking.provenance import main_checkout

SQLITE = "sqlite:///"
# Servers and databases: a folder cannot hold models, and what is in memory is gone at the end of the process.
_STORES = re.compile(r"https?://.|(?:postgresql|mysql|mssql)(?:\+\w+)?://|sqlite(?:\+\w+)?:///(?!:memory:).")
PARENT = "mlflow.parentRunId"  # tag of a child run; MLflow shows the child under this run

_NAMES = (
    r"[\w.-]*(?:password|passwd|passphrase|pwd|secret|token|api_?-?key|access_?-?key|signature|credential)[\w-]*"
    r"|pass|key|sig|auth|authorization"
)
# Up to the end of its quotes or braces; else to the next separator, and without one to the next blank.
_VALUE = (
    r"""'(?:[^'\\]|\\.)*'?|"(?:[^"\\]|\\.)*"?|\{[^}]*\}?|(?:bearer|basic|token)\s+\S+|[^;&\n'"]*(?=[;&])|[^\s;&]+"""
)
_SECRETS = (
    (re.compile(rf"""(?<![\w.-])((?:{_NAMES})["']?\s*[=:]\s*)(?:{_VALUE})""", re.IGNORECASE), r"\1***"),
    (re.compile(r"\b(bearer|basic)\s+[\w.~+/=-]{6,}", re.IGNORECASE), r"\1 ***"),
    # From :// to the last @ before the next ://; with blanks only in what may be a password.
    (re.compile(r"://(?:[^\s:@/?#]*:(?:(?!://).)*|(?:(?!://)\S)*)@", re.DOTALL), "://***@"),
)


def uri() -> str:
    """Return the address of the store: MLFLOW_TRACKING_URI, or one SQLite file at the root of the main checkout."""
    if chosen := settings.tracking_uri():
        return chosen
    checkout = main_checkout()
    if "?" in str(checkout):  # SQLAlchemy would take the rest for options, and make a database of another name
        raise UserError(
            f"{checkout} has a ? in its name, which no address of a database can have; rename the folder, or set "
            "MLFLOW_TRACKING_URI."
        )
    return f"{SQLITE}{checkout}/mlflow.db"


def masked(text: str) -> str:
    """Mask credentials in a text, rather too much than too little.

    Masked are: what stands before the @ of an address, where a password may contain any character; the values of
    queries, connection strings and headers whose names are those of secrets; and the parts of every secret of the
    environment, because an error may quote a part of an address that it could not read.
    """
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    for secret in sorted(settings.secrets(), key=len, reverse=True):
        text = text.replace(secret, "***")
    return text


def connect(advice: str = "") -> Any:
    """Return an MlflowClient of the store, without its log messages. Raises UserError if the store does not answer."""
    import mlflow
    import sqlalchemy
    from mlflow import environment_variables as environment

    if not _STORES.match(uri()):
        raise UserError(
            f"MLFLOW_TRACKING_URI is {masked(uri())!r}; it must be the address of a server (http://, https://) or of a "
            f"database (sqlite:///FILE, postgresql://, mysql://, mssql://){advice}."
        )
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # MLflow logs an error of the database with its traceback, and then raises it.
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)
    # MLflow's defaults retry a server that is down for four minutes at each call.
    for variable, value in (
        (environment.MLFLOW_HTTP_REQUEST_MAX_RETRIES, 2),
        (environment.MLFLOW_HTTP_REQUEST_TIMEOUT, 30),
        (environment.MLFLOW_HTTP_RESPECT_RETRY_AFTER_HEADER, False),
        (environment.MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR, False),
        (environment.MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT, True),
    ):
        if not variable.is_set():
            variable.set(value)
    with store_errors_as_user_errors(advice):
        if uri().startswith(SQLITE):
            _make_database(Path(uri().removeprefix(SQLITE)))
        if not uri().startswith(("http://", "https://")):
            sqlalchemy.create_engine(uri()).connect().close()  # MLflow would try for two minutes
        mlflow.set_tracking_uri(uri())
        mlflow.set_registry_uri(uri())
        client = mlflow.MlflowClient(uri(), uri())
        client.search_experiments(max_results=1)
    return client


def _make_database(path: Path) -> None:
    """Create the database under a temporary name, then rename it; other processes wait.

    Its migrations take seconds, and a kill during them would leave a file that MLflow cannot use or repair.
    """
    import mlflow

    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with exclusive_lock():
        if not path.exists():
            unfinished = path.with_name(f"{path.name}.making")
            unfinished.unlink(missing_ok=True)
            mlflow.MlflowClient(f"{SQLITE}{unfinished}").search_experiments(max_results=1)
            unfinished.replace(path)


@contextmanager
def exclusive_lock() -> Iterator[None]:
    """Lock an SQLite store against other processes of this machine; do nothing for the store of a server."""
    if not uri().startswith(SQLITE):
        yield
        return
    with files.exclusive_lock(Path(uri().removeprefix(SQLITE)).parent):
        yield


@contextmanager
def store_errors_as_user_errors(advice: str = "") -> Iterator[None]:
    """Turn a failure of the store into a UserError of one sentence, followed by `advice`."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:  # ImportError: no driver for the database
        raise UserError(
            f"The records at {masked(uri())} (MLFLOW_TRACKING_URI) cannot be used: {reason(error)}{advice}."
        ) from None


def reason(error: Exception) -> str:
    """Return the message of an exception, shortened and without credentials."""
    return masked(" ".join(str(error).split()))[:200].rstrip(".") or type(error).__name__


def experiment_id(client: Any, name: str) -> str:
    """Return the id of an experiment, created if it does not exist. Raises UserError if it was deleted."""
    from mlflow.exceptions import MlflowException

    from qamoe.tracking import dashboard

    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        try:
            experiment = client.get_experiment(
                client.create_experiment(name, artifact_location=_artifact_location(name))
            )
        except MlflowException:  # another process created it first
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
    if experiment.lifecycle_stage != "active":
        raise UserError(
            f"experiment {name!r} at {masked(uri())} was deleted; restore it, or change registry.name in params.yaml"
        )
    dashboard.arrange(client, experiment)
    return experiment.experiment_id


def _artifact_location(name: str) -> str | None:
    """Return the folder of artifacts: next to an SQLite file, in the main checkout for other databases.

    None for a server, which chooses its own. MLflow's default depends on the working folder, and a folder `mlruns`
    would make MLflow use a file store.
    """
    store = uri()
    if store.startswith(SQLITE):
        return (Path(store.removeprefix(SQLITE)).resolve().parent / "mlartifacts" / name).as_uri()
    if store.startswith(("http://", "https://")):
        return None
    return (main_checkout() / "mlartifacts" / name).as_uri()


def find(client: Any, **tags: str) -> Any | None:
    """Return the newest run of any experiment that has these tags, or None. `a__b` means the tag `a.b`."""
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    query = " and ".join(f"tags.`{name.replace('__', '.')}` = '{value}'" for name, value in tags.items())
    runs = client.search_runs(experiments, query, max_results=1, order_by=["attributes.start_time DESC"])
    return runs[0] if runs else None


def run_of(client: Any, run_id: str | None) -> Any | None:
    """Return a run, also a deleted one; None if there is no such run, or no more since `mlflow gc`."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id) if run_id else None
    except MlflowException as error:
        if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            raise
        return None


def one_run(client: Any, experiment: str, name: str, tags: dict[str, str], further: dict[str, str]) -> tuple[str, bool]:
    """Return the oldest run of an experiment with these tags, and whether this call created it.

    The run serves as a parent run. A new run also gets the tags `further`. If two machines create one at the same
    time, both use the older one.
    """

    def oldest() -> list[str]:
        runs = client.search_runs([experiment], query, max_results=1, order_by=["attributes.start_time ASC"])
        return [run.info.run_id for run in runs]

    query = " and ".join(f"tags.`{key}` = '{value}'" for key, value in tags.items())
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
