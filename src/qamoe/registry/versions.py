"""Print the registered versions as a table, and roll back to the previous champion."""

import time
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from qamoe.errors import UserError
from qamoe.registry.local_lookup import not_registered
from qamoe.registry.registry import (
    CHAMPION,
    PREVIOUS,
    ROLLED_BACK,
    TIME,
    finish,
    mark_champion,
    rolled_back_at,
    version_digest,
)
from qamoe.report.tables import stdout_console
from qamoe.terminal import printable
from qamoe.tracking.mlflow_store import connect, exclusive_lock, run_of, store_errors_as_user_errors

# Column -> metrics on the test split, as earlier versions recorded them; now they have / after the slice. The first
# that a run has is shown.
NUMBERS = {
    "clean": ("clean.mae", "clean.accuracy"),
    "missing": ("missing.mae.area", "missing.accuracy.area"),
    "noise": ("noise.mae.area", "noise.accuracy.area"),
    "mixed": ("mixed.mae", "mixed.accuracy"),
}


class VersionRow(NamedTuple):
    """A version as text; registered: the date in UTC. The columns of NUMBERS are "" if it was not evaluated."""

    version: str
    registered: str
    aliases: str
    decision: str
    model: str
    seed: str
    clean: str
    missing: str
    noise: str
    mixed: str


def show(name: str) -> None:
    """Print the versions of a registered model, the newest first. Raises UserError if none is registered."""
    from rich.table import Table
    from rich.text import Text

    with store_errors_as_user_errors():
        rows = listed(connect(), name)
    title = f"Registered versions of {name}; clean to mixed: MAE or accuracy on the test split"
    table = Table(title=Text(title))  # a name may have brackets, which are no markup
    for column in VersionRow._fields:
        table.add_column(column, justify="right" if column in (*NUMBERS, "version") else "left")
    for row in rows:
        table.add_row(*(Text(printable(cell)) for cell in row))  # anyone who may write tags chose their text
    stdout_console().print(table)


def listed(client: Any, name: str) -> list[VersionRow]:
    """Return one row per version, the newest first. Raises UserError if none is registered."""
    versions = sorted(client.search_model_versions(f"name = '{name}'"), key=lambda version: -int(version.version))
    if not versions:
        raise not_registered(name, None, None, [])
    aliases = client.get_registered_model(name).aliases
    rows = []
    for version in versions:
        run = run_of(client, version.run_id)  # one that a person registered may have none
        metrics = {} if run is None else run.data.metrics
        measured = {metric.replace("/", "."): value for metric, value in metrics.items()}
        is_champion = str(aliases.get(CHAMPION)) == str(version.version)
        decision = version.tags.get("qamoe.decision", "")
        if ROLLED_BACK in version.tags and not is_champion:
            decision = "rolled back"
        numbers = {
            column: next((f"{measured[metric]:.3f}" for metric in names if metric in measured), "")
            for column, names in NUMBERS.items()
        }
        rows.append(
            VersionRow(
                version=str(version.version),
                registered=time.strftime("%Y-%m-%d %H:%M", time.gmtime(version.creation_timestamp / 1000)),
                aliases=", ".join(sorted(alias for alias, of in aliases.items() if str(of) == str(version.version))),
                decision=decision,
                model=version.tags.get("qamoe.model", ""),
                seed=version.tags.get("qamoe.seed", ""),
                **numbers,
            )
        )
    return rows


def rollback(name: str) -> str:
    """Swap champion and previous; return a sentence about the new champion.

    Raises UserError without a champion or a previous version, or if no training made that one. The replaced version is
    tagged first; the promotion gate does not promote a tagged version again. The champion alias moves in one step, so a
    kill at any moment leaves exactly one champion. A rollback that was killed between its two aliases is completed by
    the next one, which then does nothing else.
    """
    with store_errors_as_user_errors():
        client = connect()
        with exclusive_lock():
            return _swapped(client, name)


def _swapped(client: Any, name: str) -> str:
    replaced = finish(client, name)
    aliases = {alias: str(version) for alias, version in _aliases(client, name).items()}
    current, previous = aliases.get(CHAMPION), aliases.get(PREVIOUS)
    if current is None:
        raise UserError(f"{name} has no champion to roll back")
    if replaced is not None:
        return _summary(name, current, replaced)
    if previous is None or previous == current:
        raise UserError(f"{name} has no champion before version {current} to roll back to")
    version_digest(client, name, previous)  # a person may have aliased what no command can use
    client.set_model_version_tag(name, current, ROLLED_BACK, _next_time(client, name))
    client.set_registered_model_alias(name, CHAMPION, previous)
    client.set_registered_model_alias(name, PREVIOUS, current)
    mark_champion(client, name, client.get_model_version(name, previous).run_id)
    if ROLLED_BACK in client.get_model_version(name, previous).tags:
        client.delete_model_version_tag(name, previous, ROLLED_BACK)
    return _summary(name, previous, current)


def _next_time(client: Any, name: str) -> str:
    """Return the time in UTC, but later than that of every other rollback, because a clock may jump back."""
    versions = client.search_model_versions(f"name = '{name}'")
    now = datetime.now(UTC)
    for version in versions:
        if rolled_back := rolled_back_at(version):
            now = max(now, rolled_back + timedelta(seconds=1))
    return now.strftime(TIME)


def _summary(name: str, champion: str, replaced: str) -> str:
    return (
        f"champion: version {champion} of {name}, in place of version {replaced}; a running server switches on reload"
    )


def _aliases(client: Any, name: str) -> dict[str, Any]:
    from mlflow.exceptions import MlflowException

    try:
        return dict(client.get_registered_model(name).aliases)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return {}
        raise
