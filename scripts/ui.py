"""Start MLflow's page on the records of this checkout, and print the address of the runs: `make ui`.

MLflow itself opens on a page for language models. Records on a server have a page already; then only print its address.
"""

import argparse
import os
import sys
from pathlib import Path

from qamoe.config import params as parameters
from qamoe.config import settings
from qamoe.errors import exit_on_user_error
from qamoe.tracking import dashboard, mlflow_store


def runs_page(address: str) -> str:
    """Return the address of the saved view of the runs of registry.name, on a server at `address`.

    If it has no runs yet, print so; the page is then that of its champion, or else of the newest run.
    """
    name = parameters.registry_name(Path("params.yaml"))
    client = mlflow_store.connect()
    with mlflow_store.store_errors_as_user_errors():
        experiment = mlflow_store.experiment_id(client, name)
        if not client.search_runs([experiment], dashboard.SHOWN, max_results=1):
            everywhere = [known.experiment_id for known in client.search_experiments()]
            of_champion = f"tags.champion = '{name}' and {dashboard.SHOWN}"
            for query in (of_champion, dashboard.SHOWN):
                if found := client.search_runs(everywhere, query, max_results=1):
                    experiment = found[0].info.experiment_id
                    break
            shown = client.get_experiment(experiment).name
            print(f"{name} has no runs yet" + (f"; the page shows those of {shown}" if shown != name else ""))
    return f"{address}/#/experiments/{experiment}/runs?viewStateShareKey=qamoe"


def main() -> None:
    parser = argparse.ArgumentParser(prog="ui", description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=5000)
    port = parser.parse_args().port
    settings.go_offline()
    with exit_on_user_error("ui"):
        uri = mlflow_store.uri()
        on_server = uri.startswith(("http://", "https://"))
        print(f"runs: {mlflow_store.masked(runs_page(uri if on_server else f'http://127.0.0.1:{port}'))}", flush=True)
    if on_server:
        return
    # The address of a database may hold a password, which a command line would show to every user of the machine.
    os.environ["MLFLOW_BACKEND_STORE_URI"] = uri
    server = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    os.execv(sys.executable, server)


if __name__ == "__main__":
    main()
