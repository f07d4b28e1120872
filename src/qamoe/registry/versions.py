"""The registered versions as a person asks for them: a table, and the way back to the champion before."""

import time
from typing import Any, NamedTuple

from qamoe.errors import UserError
from qamoe.registry.registry import CHAMPION, PREVIOUS, ROLLED_BACK, finish
from qamoe.tracking.mlflow_store import connect, exclusive_lock, store_errors_as_user_errors

# What the test split said, as evaluate records it: the first of each that a run has.
NUMBERS = {
    "clean": ("clean.mae", "clean.accuracy"),
    "missing": ("missing.mae.area", "missing.accuracy.area"),
    "noise": ("noise.mae.area", "noise.accuracy.area"),
    "mixed": ("mixed.mae", "mixed.accuracy"),
}


class Row(NamedTuple):
    """A version as text; the numbers of NUMBERS are "" where it was not evaluated."""

    version: str
    aliases: str
    decision: str
    model: str
    seed: str
    clean: str
    missing: str
    noise: str
    mixed: str


def show(name: str) -> None:
    """Print the versions of a registered model, the newest first. Raises UserError where there is none."""
    from rich.console import Console
    from rich.table import Table

    with store_errors_as_user_errors():
        rows = listed(connect(), name)
    console = Console()
    if not console.is_terminal:
        console.width = 200
    table = Table(title=f"{name}: MAE or accuracy on the test split")
    for column in Row._fields:
        table.add_column(column, justify="right" if column in (*NUMBERS, "version") else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table)


def listed(client: Any, name: str) -> list[Row]:
    """A row a version, the newest first. Raises UserError where there is none."""
    versions = sorted(client.search_model_versions(f"name = '{name}'"), key=lambda version: -int(version.version))
    if not versions:
        raise UserError(f"No version of {name} is registered; qamoe promote, or make demo, registers the first.")
    aliases = client.get_registered_model(name).aliases
    rows = []
    for version in versions:
        measured = client.get_run(version.run_id).data.metrics
        champions = str(aliases.get(CHAMPION)) == str(version.version)
        decision = version.tags.get("qamoe.decision", "")
        if ROLLED_BACK in version.tags and not champions:
            decision = "rolled back"
        numbers = {
            column: next((f"{measured[metric]:.3f}" for metric in names if metric in measured), "")
            for column, names in NUMBERS.items()
        }
        rows.append(
            Row(
                version=str(version.version),
                aliases=", ".join(sorted(alias for alias, of in aliases.items() if str(of) == str(version.version))),
                decision=decision,
                model=version.tags.get("qamoe.model", ""),
                seed=version.tags.get("qamoe.seed", ""),
                **numbers,
            )
        )
    return rows


def rollback(name: str) -> str:
    """Swap champion and previous; returns a sentence of what answers now. Raises UserError where there is no previous.

    The version that is rolled back is tagged first, so that the gate does not promote it again by itself; the
    champion's alias moves in one step, so a kill at any moment leaves one champion, that of before or that of after.
    A rollback that was killed between its two aliases is ended by the next one, which then does no more.
    """
    with store_errors_as_user_errors():
        client = connect()
        with exclusive_lock():
            return _swapped(client, name)


def _swapped(client: Any, name: str) -> str:
    left = finish(client, name)
    aliases = {alias: str(of) for alias, of in _aliases(client, name).items()}
    now, before = aliases.get(CHAMPION), aliases.get(PREVIOUS)
    if now is None:
        raise UserError(f"{name} has no champion, so there is none to go back from.")
    if left is not None:
        return _answers(name, now, left)
    if before is None or before == now:
        raise UserError(f"{name} has no champion before version {now}; there is nothing to go back to.")
    client.set_model_version_tag(name, now, ROLLED_BACK, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
    client.set_registered_model_alias(name, CHAMPION, before)
    client.set_registered_model_alias(name, PREVIOUS, now)
    if ROLLED_BACK in client.get_model_version(name, before).tags:
        client.delete_model_version_tag(name, before, ROLLED_BACK)
    return _answers(name, before, now)


def _answers(name: str, now: str, before: str) -> str:
    return (
        f"champion: version {now} of {name}, in place of version {before}; a server follows when it is told to reload"
    )


def _aliases(client: Any, name: str) -> dict[str, Any]:
    from mlflow.exceptions import MlflowException

    try:
        return dict(client.get_registered_model(name).aliases)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return {}
        raise
