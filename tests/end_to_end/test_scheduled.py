"""A cron schedule of prefect.yaml: the server plans the runs and a worker runs them, without manual steps."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.conftest import Run, copy_checkout, git, serving
from tests.end_to_end.postgresql import BINARIES, WHY_NOT, postgresql

pytestmark = pytest.mark.slow

QUARTERS = {"00:00", "15:00", "30:00", "45:00"}


@contextmanager
def database(kind: str) -> Iterator[dict[str, str]]:
    """Yield the environment variables of a Prefect server on that database."""
    if kind == "sqlite":
        yield {}
        return
    if BINARIES is None:
        pytest.skip(WHY_NOT)
    with postgresql("prefect") as address:
        yield {"PREFECT_SERVER_DATABASE_CONNECTION_URL": f"postgresql+asyncpg://{address}/prefect"}


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_a_cron_schedule_runs_by_itself(kind: str, finished: Run, tmp_path: Path) -> None:
    checkout = copy_checkout(finished.checkout, tmp_path / "checkout")
    plan = (checkout / "prefect.yaml").read_text()
    assert plan.count('cron: "0 3 * * *"') == 1
    (checkout / "prefect.yaml").write_text(plan.replace('cron: "0 3 * * *"', 'cron: "* * * * *"'))
    git(checkout, "commit", "--all", "--quiet", "--message", "each minute")
    with database(kind) as more, serving(checkout, tmp_path / "prefect", **more) as services:

        def newest_scheduled(name: str, *states: str) -> Any:
            """Return the newest scheduled run in one of these states, None if it does not exist."""
            runs = services.runs(name)
            return next((r for r in runs if r["auto_scheduled"] and r["state"]["type"] in states), None)

        # On a slow machine a run takes longer than a minute, and the next one is cancelled.
        run = services.until(lambda: newest_scheduled("nightly", "COMPLETED", "FAILED", "CRASHED"))
        assert run["state"]["type"] == "COMPLETED", run["state"]["message"]
        commit = git(checkout, "rev-parse", "HEAD")
        assert run["name"] == f"nothing stale, unchanged at {commit[:7]}"
        assert run["labels"]["qamoe.commit"] == commit
        assert {"qamoe.dvc_lock_digest", "qamoe.data_digest"} <= set(run["labels"])
        (artifact,) = (a for a in services.request("artifacts/filter", {}) if a["flow_run_id"] == run["id"])
        assert artifact["key"] == "pipeline"
        assert "| qamoe |" in artifact["data"]

        # Other deployments are planned for their own times; a manual one is not planned.
        planned = {name: services.runs(name) for name in ("weekly", "every-15-minutes")}
        assert all("T06:00:00" in r["expected_start_time"] for r in planned["weekly"])
        assert {r["expected_start_time"][14:19] for r in planned["every-15-minutes"]} <= QUARTERS
        assert all(planned.values())
        assert services.runs("by-hand") == []

        with (checkout / "params.yaml").open("a") as file:
            file.write("# changed by somebody\n")
        (checkout / "data.dvc").write_text((checkout / "data.dvc").read_text() + "# of another corpus\n")
        run = services.until(lambda: newest_scheduled("nightly", "FAILED"))
        assert "params.yaml" in run["state"]["message"]
