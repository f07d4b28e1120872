"""A cron of prefect.yaml: the server plans the runs, a worker runs them, and nobody touches anything."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.conftest import Run, copied, git, serving
from tests.end_to_end.postgresql import BINARIES, WHY_NOT, postgresql

pytestmark = pytest.mark.slow

QUARTERS = {"00:00", "15:00", "30:00", "45:00"}


@contextmanager
def database(kind: str) -> Iterator[dict[str, str]]:
    """The environment of a Prefect server on that database."""
    if kind == "sqlite":
        yield {}
        return
    if BINARIES is None:
        pytest.skip(WHY_NOT)
    with postgresql("prefect") as place:
        yield {"PREFECT_SERVER_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://{place}/prefect"}


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_cron_runs_without_anybody(kind: str, finished: Run, tmp_path: Path) -> None:
    checkout = copied(finished.checkout, tmp_path / "checkout")
    plan = (checkout / "prefect.yaml").read_text()
    assert plan.count('cron: "0 3 * * *"') == 1
    (checkout / "prefect.yaml").write_text(plan.replace('cron: "0 3 * * *"', 'cron: "* * * * *"'))
    git(checkout, "commit", "--all", "--quiet", "--message", "each minute")
    with database(kind) as more, serving(checkout, tmp_path / "prefect", **more) as here:

        def by_itself(name: str, *states: str) -> Any:
            """The newest run of the schedule's that has ended so."""
            runs = here.runs(name)
            return next((r for r in runs if r["auto_scheduled"] and r["state"]["type"] in states), None)

        # On a slow machine a run takes longer than a minute, and the next one is cancelled meanwhile.
        run = here.until(lambda: by_itself("nightly", "COMPLETED", "FAILED", "CRASHED"))
        assert run["state"]["type"] == "COMPLETED", run["state"]["message"]
        commit = git(checkout, "rev-parse", "HEAD")
        assert run["name"] == f"nothing stale, unchanged at {commit[:7]}"
        assert run["labels"]["qamoe.commit"] == commit
        assert {"qamoe.dvc_lock_digest", "qamoe.data_digest"} <= set(run["labels"])
        own = [a for a in here.ask("artifacts/filter", {}) if a["flow_run_id"] == run["id"]]
        assert [artifact["key"] for artifact in own] == ["pipeline"]
        assert "| qamoe |" in own[0]["data"]

        # Others are planned for their own time, and what is for a person's hand is not planned at all.
        planned = {name: here.runs(name) for name in ("weekly", "every-15-minutes")}
        assert all("T06:00:00" in r["expected_start_time"] for r in planned["weekly"])
        assert {r["expected_start_time"][14:19] for r in planned["every-15-minutes"]} <= QUARTERS
        assert all(planned.values())
        assert here.runs("by-hand") == []

        with (checkout / "params.yaml").open("a") as file:
            file.write("# changed by somebody\n")
        (checkout / "data.dvc").write_text((checkout / "data.dvc").read_text() + "# of another corpus\n")
        run = here.until(lambda: by_itself("nightly", "FAILED"))
        told = "Changed but not committed: params.yaml; a scheduled run takes commits only."
        assert run["state"]["message"] == told
