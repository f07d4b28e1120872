"""Evaluate the champion on the current test split; record a child run of its training run and tags of its version.

The test split grows with the data and the champion's weights stay the same, so a difference between two measurements
comes from the data. As in promotion, the champion reads frames standardised by its own training split.
"""

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qamoe.config import params as parameters
from qamoe.config import settings
from qamoe.config.params import Params
from qamoe.data.stats import Stats, timed
from qamoe.errors import UserError
from qamoe.files import file_digest
from qamoe.pipeline.evaluate import PREDICTIONS, aggregate
from qamoe.pipeline.promote import download_version, restandardise, same_standardisation
from qamoe.pipeline.shared import read_stats
from qamoe.pipeline.source_dependencies import code_digest

if TYPE_CHECKING:
    import pandas as pd

    from qamoe.data.arrow_store import Store
    from qamoe.models.checkpoint import Trained


def run(params: Params, out: Path) -> None:
    """Measure and record the champion, unless the same was measured before.

    Raises UserError if the model has no champion, the test split is empty, or the champion was trained on another
    corpus.
    """
    from qamoe.data.arrow_store import Store
    from qamoe.dataset.degraded_split import feature_sizes
    from qamoe.evaluation.protocol import PROTOCOL
    from qamoe.registry import champion_evaluations, registry
    from qamoe.tracking.mlflow_store import connect, store_errors_as_user_errors

    stats = read_stats(out)
    test = out / "preprocess" / "test.arrow"
    store = Store(test)
    if not len(store):
        raise UserError(f"The test split is empty ({test}); the champion cannot be evaluated.")
    name = params.registry.name
    client = connect()
    with store_errors_as_user_errors():
        current = registry.champion(client, name)
    if current is None:
        raise UserError(f"{name} has no champion; promote a candidate first.")
    test_split = {"test_digest": file_digest(test), "test_clips": str(len(store)), "protocol": str(PROTOCOL)}
    digest = parameters.digest(
        current.digest, test_split, params.evaluate, code_digest("qamoe.pipeline.evaluate_champion")
    )
    with store_errors_as_user_errors():
        known_run = champion_evaluations.existing_run(client, digest)
    title = f"version {current.version} of {name} on {len(store)} test clips"
    if known_run is not None:
        print(f"{title}; measured before\nrun: {known_run}", flush=True)
        return
    corpus = {"stats": stats, "task": stats["task"], "inputs": feature_sizes(stats), "extract": _extract(params)}
    with tempfile.TemporaryDirectory() as temporary:
        trained = download_version(name, current.version, corpus, Path(temporary), current.digest)
        cells = _cells(params, stats, trained, store, Path(temporary))
    with store_errors_as_user_errors():
        run_id = champion_evaluations.record(client, name, current, digest, cells, test_split)
    print(title)
    for line in _headline(cells):
        print(line)
    print(f"run: {run_id}", flush=True)


def _extract(params: Params) -> dict[str, Any]:
    return params.extract.model_dump(mode="json", exclude={"corpus"})


def _cells(params: Params, stats: Stats, champion: "Trained", store: "Store", folder: Path) -> "pd.DataFrame":
    """Measure the champion on the slices of params.yaml and return its cells.parquet."""
    import pandas as pd

    from qamoe.dataset.degraded_split import open_views
    from qamoe.degradation.views import references_from_stats
    from qamoe.evaluation import protocol

    training_stats, modalities = champion.config["stats"], tuple(champion.config["modalities"])
    if not same_standardisation(training_stats, stats):
        store = restandardise(store, stats, training_stats, folder / "own.arrow")
    cells = protocol.plan(params.evaluate.slices, params.evaluate, modalities, timed(training_stats, modalities))
    device = settings.device()
    views = protocol.views(cells)
    inputs = (references_from_stats(training_stats), folder / "states", file_digest(store.path), device)
    split = open_views(store, views, modalities, *inputs, encoder=champion.frozen_encoder)
    with protocol.predictions_file(folder / PREDICTIONS) as append:
        for (rows,) in protocol.by_view([champion], split, cells, device):
            append(rows)
    aggregate(champion, cells, folder)
    return pd.read_parquet(folder / "cells.parquet")


def _headline(cells: "pd.DataFrame") -> list[str]:
    from qamoe.report import tables

    values = tables.headline(cells.assign(model="champion", seed=0)).iloc[0]
    return [f"{c.label}: {tables.number(values[c.name], c.metric)}" for c in tables.columns_of(cells)]
