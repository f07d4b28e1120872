"""Build the benchmark table of one slice: averages over severities 0 to 0.9, next to published results.

Non0 and Has0 have separate columns, because papers write "a/b" in either order.
"""

import csv
from pathlib import Path

import pandas as pd

from qamoe.config.params import LANDSCAPE
from qamoe.errors import UserError
from qamoe.report import tables
from qamoe.report.table_formats import Measure, ResultTable, TableRow

SOURCE = "arXiv 2609.10950"
PUBLISHED_SEEDS = 3
CORPORA = ("mosi", "mosei")
PUBLISHED = (
    "* Published results, not measured here: {source} (TCMR), Table 1, corpus {corpus}. The authors ran public code "
    "under this protocol: BERT-base, checkpoint chosen on validation, mean of 3 seeds. They give no SD."
)
MOSI_LABELS = {
    "acc7": "Acc-7", "acc5": "Acc-5", "acc2_non0": "Acc-2 Non0", "f1_non0": "F1 Non0", "acc2_has0": "Acc-2 Has0",
    "f1_has0": "F1 Has0", "mae": "MAE", "corr": "Corr", "mean_error": "Mean error",
}  # fmt: skip
SIMS_LABELS = {
    "acc5_sims": "Acc-5", "acc3_sims": "Acc-3", "acc2_sims": "Acc-2", "f1_sims": "F1", "mae_clipped": "MAE clipped",
    "corr_clipped": "Corr clipped", "mae": "MAE", "mean_error": "Mean error",
}  # fmt: skip
MULTILABEL_LABELS = {
    "exact_match": "Exact match", "accuracy": "Accuracy of labels", "macro_f1": "F1, mean of labels",
    "weighted_f1": "Weighted F1, mean", "balanced_acc": "Weighted accuracy, mean", "nll": "NLL",
    "calibration_error": "ECE",
}  # fmt: skip
CLASS_LABELS = {
    "accuracy": "Accuracy (WA)", "macro_recall": "Macro recall (UA)", "weighted_f1": "Weighted F1",
    "macro_f1": "Macro F1", "macro_precision": "Macro precision", "nll": "NLL", "calibration_error": "ECE",
}  # fmt: skip


def of_slice(cells: pd.DataFrame, name: str, peers: str | None = None) -> ResultTable:
    """Return the table of slice `name`, followed by the published rows of corpus `peers`.

    cells: cells.parquet of all runs, with the columns model and seed. A graded slice is averaged over severities 0 to
    0.9, as in the literature; any other slice shows the value of its summary. Raises UserError for a slice that was
    not evaluated, and for peers on a slice other than missing.
    """
    slice_cells = cells[cells["slice"] == name]
    if slice_cells.empty:
        raise UserError(f"slice {name!r} was not evaluated; evaluated slices: {', '.join(cells['slice'].unique())}")
    if peers is not None and peers not in CORPORA:
        raise UserError(f"no published results for {peers!r}; allowed: {', '.join(CORPORA)}")
    if peers is not None and name != "missing":
        raise UserError(f"published results cover slice missing, not slice {name}; leave --peers out")
    runs = tables.summaries(slice_cells)
    present = set(runs["metric"])
    label_sets = (MOSI_LABELS, SIMS_LABELS, MULTILABEL_LABELS, CLASS_LABELS)
    labels = next((candidate for candidate in label_sets if next(iter(candidate)) in present), None)
    if labels is None:
        raise UserError(f"slice {name} has only the metrics {', '.join(sorted(present))}; none is a benchmark metric")
    if peers is not None and labels is not MOSI_LABELS:
        raise UserError(f"published results of {peers} are for labels from -3 to 3; these runs have other labels")
    measures = [Measure(metric, metric, label) for metric, label in labels.items() if metric in present]
    statistic = "area09" if runs["area09"].notna().any() else "area"
    rows = []
    for model in runs["model"].unique():
        model_runs = runs[runs["model"] == model]
        values = [model_runs.loc[model_runs["metric"] == m.metric, statistic] for m in measures]
        rows.append(TableRow(model, model_runs["seed"].nunique(), [(v.mean(), v.std()) for v in values]))
    notes = []
    if peers is not None:
        rows += _published_rows(peers, measures)
        notes.append(PUBLISHED.format(source=SOURCE, corpus=f"CMU-{peers.upper()}"))
    averaged = "mean over severities 0 to 0.9" if statistic == "area09" else "mean over all its cells"
    if name == LANDSCAPE:
        averaged = "volume over noise and lost modalities"
    return ResultTable(f"Slice {name}, {averaged}; mean ± SD over training seeds", measures, rows, notes)


def _published_rows(corpus: str, measures: list[Measure]) -> list[TableRow]:
    rows = []
    with Path(__file__).with_name("peers.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["corpus"] == corpus:
                values = []
                for measure in measures:
                    value = float(row.get(measure.metric) or "nan")
                    values.append((value / 100 if tables.is_share(measure.metric) else value, float("nan")))
                rows.append(TableRow(row["model"], PUBLISHED_SEEDS, values, SOURCE))
    return rows


def headline(cells: pd.DataFrame) -> ResultTable:
    """Return the headline of all models, with the numbers of print_headline, for the other formats."""
    headline, columns = tables.headline(cells), tables.columns_of(cells)
    rows = [
        TableRow(row["model"], row["seeds"], [(row[c.name], row[f"{c.name}.sd"]) for c in columns])
        for _, row in headline.iterrows()
    ]
    measures = [Measure(c.name, c.metric, c.label) for c in columns]
    return ResultTable("Test split; mean ± SD over training seeds", measures, rows, [])
