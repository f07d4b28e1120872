"""Validation error of trained models in each selection cell: what an experiment may look at, the test split being shut.

`python scripts/validation_cells.py [--params FILE] [--out DIR] [MODEL ...]` after `python -m qamoe.pipeline.train`.
"""

import argparse
import sys
from pathlib import Path

import numpy as np

from qamoe.config import params as parameters
from qamoe.config import settings
from qamoe.errors import UserError
from qamoe.models import checkpoint
from qamoe.pipeline.shared import read_stats
from qamoe.pipeline.train import open_splits
from qamoe.training.selection import predictions, selection_value


def main() -> None:
    """Print a row a model: mean ± SD over seeds of the selection value, then the mean error of each cell."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--out", type=Path, default=Path("artifacts"))
    parser.add_argument("models", nargs="*")
    asked = parser.parse_args()
    settings.go_offline()
    params = parameters.load(asked.params)
    stats = read_stats(asked.out)
    for name in asked.models or params.seeds:
        _, valid, cells = open_splits(params, stats, asked.out, name)
        values, errors = [], []
        for seed in params.seeds[name]:
            trained = checkpoint.load(asked.out / "train" / name / str(seed))
            found = predictions(trained.model, valid, cells.selection, params.train.common.batch_size, "cpu")
            values.append(selection_value(found, cells))
            errors.append(np.abs(found["value"] - found["target"]).mean(1))
        print(f"{name}: {np.mean(values):.4f} ± {np.std(values, ddof=min(1, len(values) - 1)):.4f}")
        by_view = np.mean(errors, axis=0)
        for cell in sorted(set(cells.groups)):
            places = [place for place, group in enumerate(cells.groups) if group == cell]
            view = cells.views[cells.selection[places[0]]]
            assert view.kinds
            assert view.severities
            print(f"  {view.kinds[0]} {view.severities[0]:.1f}: {by_view[places].mean():.4f}")


if __name__ == "__main__":
    try:
        main()
    except UserError as refusal:
        sys.exit(f"validation_cells: {refusal}")
