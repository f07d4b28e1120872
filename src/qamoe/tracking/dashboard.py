"""Set up the MLflow page of an experiment: curves by severity and a table, with the models side by side.

MLflow stores a saved view as a tag of the experiment, in an undocumented format. This module writes the format of the
version that pyproject.toml pins; a test opens it in a browser.
"""

import json
import re
from typing import Any

_VIEW = "mlflow.sharedViewState.qamoe"
NAME = "Models along the spectrum"
_KIND = {"mlflow.experimentKind": "custom_model_development"}  # otherwise the page opens on language model traces
_NOTE = "mlflow.note.content"
SHOWN = "tags.`qamoe.seed` LIKE '%'"  # which runs the view shows: seeds, no trials, no parent runs
# The end of a description that a later version may replace; those of earlier versions did not have it.
_OURS = "qamoe renews this description. To write your own, delete this line."
_FORMER = re.compile(
    r"\[Curves\]\(#/experiments/\d+/runs\S*\) and \[table\]\(\S*\) of the (models|trainings), means over seeds\. "
    r"(`missing\.mae` and its like: step|In curves such as `missing[./]mae`, the step) is severity x 100\. "
    r"`\.area` is the mean over severities\."
)
# Metrics of both tasks; the page hides the charts of metrics that no run has.
CURVES = tuple(f"{name}/{metric}" for metric in ("mae", "accuracy") for name in ("missing", "noise", "burst"))
BARS = ("mixed/mae", "clean/mae", "clean/corr", "mixed/accuracy", "clean/accuracy")
_EARLIER = tuple(name.replace("/", ".") for name in (*CURVES, *BARS))  # as earlier versions wrote them
COLUMNS = ("clean/mae", "missing/mae.area", "noise/mae.area", "mixed/mae", "clean/corr", "valid/selection")


def view() -> str:
    """Return the saved view: the seeds of a training are one group; curves over severity first, then bars."""
    sections = [
        {"uuid": "spectrum", "name": "Spectrum", "display": True, "isReordered": True, "deleted": False},
        {"uuid": "earlier", "name": "Earlier versions", "display": False, "isReordered": True, "deleted": False},
        {"uuid": "rest", "name": "Model metrics", "display": False, "isReordered": True, "deleted": False},
        {"uuid": "system", "name": "System metrics", "display": False, "isReordered": True, "deleted": False},
    ]
    state = {
        "searchFilter": SHOWN,
        "orderByKey": "metrics.`mixed/mae`",
        "orderByAsc": True,
        "selectedColumns": [f"metrics.`{name}`" for name in COLUMNS],
        "groupBy": {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": "training"}]},
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "isAccordionReordered": True,
        "compareRunCharts": [_card(name) for name in (*CURVES, *BARS, *_EARLIER)],
        "compareRunSections": sections,
    }
    # Fixed times keep the tag constant, so it is written only once.
    return json.dumps({"name": NAME, "createdAt": 0, "updatedAt": 0, "state": json.dumps(state)})


def _card(metric: str) -> dict[str, Any]:
    kind = "LINE" if metric.replace(".", "/") in CURVES else "BAR"
    section = "earlier" if metric in _EARLIER else "spectrum"
    card: dict[str, Any] = {"type": kind, "uuid": metric, "metricKey": metric, "displayName": metric}
    card |= {"metricSectionId": section, "deleted": False, "isGenerated": False, "runsCountToCompare": 10}
    if kind == "LINE":
        card |= {"scaleType": "linear", "xAxisScaleType": "linear", "xAxisKey": "step", "lineSmoothness": 0}
        card |= {"selectedMetricKeys": [metric], "selectedXAxisMetricKey": "", "yAxisKey": "metric"}
        card |= {"yAxisExpressions": [], "ignoreOutliers": False, "useGlobalXaxisKey": True, "range": {}}
        card |= {"useGlobalLineSmoothing": True}
    return card


def tags(experiment: str) -> dict[str, str]:
    """Return the tags of the experiment with this id."""
    runs = f"#/experiments/{experiment}/runs?viewStateShareKey=qamoe"
    note = (
        f"[Curves]({runs}&compareRunsMode=CHART) and [table]({runs}) of the trainings, means over seeds. "
        "In curves such as `missing/mae`, the step is severity x 100. `.area` is the mean over severities. "
        "`valid/selection` is the error that chose the epoch: the mean over the selection cells of the validation "
        f"split.\n\n{_OURS}"
    )
    return _KIND | {_VIEW: view(), _NOTE: note}


def _is_ours(note: str) -> bool:
    return not note or note.endswith(_OURS) or _FORMER.fullmatch(note) is not None


def arrange(client: Any, experiment: Any) -> None:
    """Set the tags of an experiment, but keep a description that a user has edited."""
    number = experiment.experiment_id
    for tag, value in tags(number).items():
        if experiment.tags.get(tag) != value and (tag != _NOTE or _is_ours(experiment.tags.get(tag, ""))):
            try:
                client.set_experiment_tag(number, tag, value)
            except Exception:  # a process that starts at the same time may have set it first
                if client.get_experiment(number).tags.get(tag) != value:
                    raise
