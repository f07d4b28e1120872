"""What MLflow's own page of an experiment shows first: the models side by side, along the spectrum and as a table.

MLflow keeps a saved view as a tag of the experiment, in the form that its page writes itself; this is the form of the
version that pyproject.toml pins, and a test opens it in a browser.
"""

import json
from typing import Any

_VIEW = "mlflow.sharedViewState.qamoe"
NAME = "Models along the spectrum"
_KIND = {"mlflow.experimentKind": "custom_model_development"}  # or the page opens on traces of language models
_NOTE = "mlflow.note.content"
# The first of each that a run has is shown: of a regression task, or of classes.
CURVES = tuple(f"{name}.{metric}" for metric in ("mae", "accuracy") for name in ("missing", "noise", "burst"))
BARS = ("mixed.mae", "clean.mae", "clean.corr", "mixed.accuracy", "clean.accuracy")
COLUMNS = ("clean.mae", "missing.mae.area", "noise.mae.area", "mixed.mae", "clean.corr", "selection")


def view() -> str:
    """The saved view: runs grouped by model, means over seeds; curves over severity first, then bars."""
    sections = [
        {"uuid": "spectrum", "name": "Spectrum", "display": True, "isReordered": True, "deleted": False},
        {"uuid": "rest", "name": "Model metrics", "display": False, "isReordered": True, "deleted": False},
        {"uuid": "system", "name": "System metrics", "display": False, "isReordered": True, "deleted": False},
    ]
    state = {
        "searchFilter": "tags.`qamoe.seed` LIKE '%'",  # neither trials nor what seeds and trials are children of
        "orderByKey": "metrics.`mixed.mae`",
        "orderByAsc": True,
        "selectedColumns": [f"metrics.`{name}`" for name in COLUMNS],
        "groupBy": {"aggregateFunction": "average", "groupByKeys": [{"mode": "param", "groupByData": "model"}]},
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "isAccordionReordered": True,
        "compareRunCharts": [*(_card("LINE", name) for name in CURVES), *(_card("BAR", name) for name in BARS)],
        "compareRunSections": sections,
    }
    # No times: the tag is the same whenever it is written.
    return json.dumps({"name": NAME, "createdAt": 0, "updatedAt": 0, "state": json.dumps(state)})


def _card(kind: str, metric: str) -> dict[str, Any]:
    card: dict[str, Any] = {"type": kind, "uuid": metric, "metricKey": metric, "displayName": metric}
    card |= {"metricSectionId": "spectrum", "deleted": False, "isGenerated": False, "runsCountToCompare": 10}
    if kind == "LINE":
        card |= {"scaleType": "linear", "xAxisScaleType": "linear", "xAxisKey": "step", "lineSmoothness": 0}
        card |= {"selectedMetricKeys": [metric], "selectedXAxisMetricKey": "", "yAxisKey": "metric"}
        card |= {"yAxisExpressions": [], "ignoreOutliers": False, "useGlobalXaxisKey": True, "range": {}}
        card |= {"useGlobalLineSmoothing": True}
    return card


def tags(experiment: str) -> dict[str, str]:
    """The tags of an experiment of that id."""
    runs = f"#/experiments/{experiment}/runs?viewStateShareKey=qamoe"
    note = (
        f"[Curves]({runs}&compareRunsMode=CHART) and [table]({runs}) of the models, means over seeds. "
        "`missing.mae` and its like: step is severity x 100. `.area` is the mean over severities."
    )
    return _KIND | {_VIEW: view(), _NOTE: note}


def arrange(client: Any, experiment: Any) -> None:
    """Tag an experiment so; what a person has written in its description stays."""
    for tag, value in tags(experiment.experiment_id).items():
        if experiment.tags.get(tag) != value and not (tag == _NOTE and experiment.tags.get(tag)):
            client.set_experiment_tag(experiment.experiment_id, tag, value)
