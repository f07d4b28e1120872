"""The field's own table of one slice: averages over severities 0 to 0.9, mean and SD over seeds, beside its peers.

Non0 and Has0 stand in columns of their own: papers write "a/b" in either order.
"""

import csv
from pathlib import Path

import pandas as pd

from qamoe.errors import UserError
from qamoe.report import tables
from qamoe.report.table_formats import Line, Measure, ResultTable

SOURCE = "arXiv 2609.10950"
SEEDS = 3  # of the published rows
CORPORA = ("mosi", "mosei")
PUBLISHED = (
    "* Published by others, not measured here: {source} (TCMR), Table 1, corpus {corpus}. Their re-run of public code "
    "under this protocol, BERT-base, checkpoint chosen on validation, mean of 3 seeds; no SD is given there."
)
MOSI = {
    "acc7": "Acc-7", "acc5": "Acc-5", "acc2_non0": "Acc-2 Non0", "f1_non0": "F1 Non0", "acc2_has0": "Acc-2 Has0",
    "f1_has0": "F1 Has0", "mae": "MAE", "corr": "Corr", "mean_error": "Mean error",
}  # fmt: skip
SIMS = {
    "acc5_sims": "Acc-5", "acc3_sims": "Acc-3", "acc2_sims": "Acc-2", "f1_sims": "F1", "mae_clipped": "MAE clipped",
    "corr_clipped": "Corr clipped", "mae": "MAE", "mean_error": "Mean error",
}  # fmt: skip
CLASSES = {
    "accuracy": "Accuracy (WA)", "macro_recall": "Macro recall (UA)", "weighted_f1": "Weighted F1",
    "macro_f1": "Macro F1", "macro_precision": "Macro precision", "nll": "NLL", "calibration_error": "ECE",
}  # fmt: skip


def of_slice(cells: pd.DataFrame, name: str, peers: str | None = None) -> ResultTable:
    """The table of slice `name`, with the published rows of corpus `peers` below ours.

    cells: those of all runs, with model and seed. A graded slice is averaged over severities 0 to 0.9, as the field
    does; any other has its summary's value. Raises UserError for a slice that is not there, and for peers of another
    slice than missing.
    """
    of_slice = cells[cells["slice"] == name]
    if of_slice.empty:
        there = ", ".join(cells["slice"].unique())
        raise UserError(f"No slice {name!r} was evaluated; there are {there}.")
    if peers is not None and peers not in CORPORA:
        raise UserError(f"There are no published rows of {peers!r}; allowed are {', '.join(CORPORA)}.")
    if peers is not None and name != "missing":
        raise UserError(f"The published rows are averages over slice missing, not over {name}: leave --peers out.")
    runs = tables.summaries(of_slice)
    present = set(runs["metric"])
    labels = next((set_ for set_ in (MOSI, SIMS, CLASSES) if next(iter(set_)) in present), None)
    if labels is None:
        raise UserError(f"Slice {name} holds none of the field's metrics, only {', '.join(sorted(present))}.")
    if peers is not None and labels is not MOSI:
        raise UserError("The published rows are of labels from -3 to 3; these runs predict something else.")
    measures = [Measure(metric, metric, label) for metric, label in labels.items() if metric in present]
    statistic = "area09" if runs["area09"].notna().any() else "area"
    lines = []
    for model in runs["model"].unique():
        of_model = runs[runs["model"] == model]
        values = [of_model.loc[of_model["metric"] == m.metric, statistic] for m in measures]
        lines.append(Line(model, of_model["seed"].nunique(), [(v.mean(), v.std()) for v in values]))
    notes = []
    if peers is not None:
        lines += _published(peers, measures)
        notes.append(PUBLISHED.format(source=SOURCE, corpus=f"CMU-{peers.upper()}"))
    averaged = "mean over severities 0 to 0.9" if statistic == "area09" else "mean over all its cells"
    return ResultTable(f"Slice {name}, {averaged}; mean ± SD over training seeds", measures, lines, notes)


def _published(corpus: str, measures: list[Measure]) -> list[Line]:
    lines = []
    with Path(__file__).with_name("peers.csv").open(encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            if row["corpus"] == corpus:
                values = []
                for measure in measures:
                    value = float(row.get(measure.metric) or "nan")
                    values.append((value / 100 if tables.is_share(measure.metric) else value, float("nan")))
                lines.append(Line(row["model"], SEEDS, values, SOURCE))
    return lines


def headline(cells: pd.DataFrame) -> ResultTable:
    """The headline of all models, as print_headline has it, for the other formats."""
    headline, columns = tables.headline(cells), tables.columns_of(cells)
    lines = [
        Line(row["model"], row["seeds"], [(row[c.name], row[f"{c.name}.sd"]) for c in columns])
        for _, row in headline.iterrows()
    ]
    measures = [Measure(c.name, c.metric, c.label) for c in columns]
    return ResultTable("Test split; mean ± SD over training seeds", measures, lines, [])
