"""Search over the training parameters of QA-MoE: artifacts/tune/best_params.yaml, an overlay on params.yaml.

A leaf of the pipeline: nothing depends on it; a person takes its result over as a change of params.yaml.
"""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from qamoe import params as parameters
from qamoe import settings
from qamoe.files import write_text, written_aside
from qamoe.params import Params
from qamoe.stages import entry
from qamoe.stages.data import data_digest, read_stats
from qamoe.stages.train import open_splits

_MODEL = "qamoe"


def run(params: Params, out: Path) -> None:
    """Search with one seed on validation, the mean error over the selection cells being what is minimised."""
    from qamoe.training import search
    from qamoe.training.checkpoint import read_config
    from qamoe.training.fit import fit
    from qamoe.training.views import feature_sizes, restrict_threads

    restrict_threads()
    stats = read_stats(out)
    train, valid, cells = open_splits(params, stats, out, _MODEL)
    folder = out / "tune"

    def train_one(changed: Params, number: int, on_epoch: Callable[[dict[str, Any]], None]) -> float:
        place = folder / "trials" / str(number)
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        seed = params.seeds[_MODEL][0]
        inputs = feature_sizes(stats)
        fit(_MODEL, seed, changed, stats, inputs, train, valid, cells, {}, place, settings.device(), on_epoch)
        config = read_config(place)
        assert config is not None
        return config["selection"]

    name = parameters.digest(params.tune, params.train, params.models.encoders, params.models.qamoe, data_digest(out))
    try:
        best, value, trials = search.search(params, name[:16], folder, train_one)
    finally:
        shutil.rmtree(folder / "trials", ignore_errors=True)
    text = yaml.safe_dump(search.overlay(best), sort_keys=False)
    write_text(folder / "best_params.yaml", f"# validation error {value:.4f}, best of {len(trials)} trials\n{text}")
    with written_aside(folder / "trials.csv") as aside, aside.open("w", newline="") as file:
        writer = csv.DictWriter(file, ["number", "state", "value", "lr", "weight_decay", "dropout"])
        writer.writeheader()
        writer.writerows(trials)
    entry.log.info(json.dumps({"stage": "tune", "trials": len(trials), "best": round(value, 4), **best}))


if __name__ == "__main__":
    entry.main("tune", run)
