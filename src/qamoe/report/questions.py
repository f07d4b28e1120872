"""The questions of the paper, answered from the predictions of models that were trained on its spectrum.

One line of measures for each model and seed is enough to answer them, so that they can be answered from the lines of
several runs (scripts/questions.py). Figures of the paper are second-hand, from a digest of it, and on other corpora.

Verdicts are decided by the interval of a difference over test sources: a claim holds if the interval lies on its side
of 0, does not hold if it lies on the other, and cannot be told in between.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from qamoe.config.params import LANDSCAPE
from qamoe.report.results import Results
from qamoe.report.section import Figures, Numbers, Section
from qamoe.report.tables import MODALITIES

SUBJECT, BASELINE = "paper", "concat"
SLICES = ("clean", "missing", "mixed", "paper_noise", "subsets", LANDSCAPE)
Measures = dict[str, Any]


class Verdict(NamedTuple):
    """A difference, its 95 % interval over test sources, and what follows for a claim of its sign.

    The limits are NaN if there is no interval: one source, or one seed.
    """

    value: float
    low: float
    high: float

    @property
    def words(self) -> str:
        """What follows for the claim that the difference is below 0."""
        return "holds" if self.high < 0 else "does not hold" if self.low > 0 else "cannot be told"


@dataclass(frozen=True)
class Claim:
    """A statement, the second-hand figure of the paper (empty if none is known), and our measurement.

    `key` is its name in summary.json.
    """

    key: str
    statement: str
    paper: str
    test: str
    verdict: Verdict


def measure(results: Results, model: str, seed: Any) -> Measures:
    """Return what the questions need of one checkpoint, as plain numbers for a line of JSON.

    `errors`: slice -> source -> clips and their error (absolute error, or share of wrong classes), cells weighted as
    in the summary. `r`: modality -> Spearman's correlation of r with the severity of the landscape. `routing`: cell ->
    mean weight of each expert, and for the undegraded cell that of every second clip too; empty for a model without
    experts and for a landscape without that cell.
    """
    only = results._replace(folders={model: {seed: results.folders[model][seed]}})
    present = [name for name in SLICES if name in only.slices_of(model)]
    errors = {name: _errors_by_source(only.compared(model, name)) for name in present}
    line: Measures = {"model": model, "seed": seed, "errors": errors}
    if LANDSCAPE in present:
        rows = only.predictions(model, LANDSCAPE)
        line |= {"r": _correlations(rows), "routing": _routing(rows)}
    return line


def _errors_by_source(rows: pd.DataFrame) -> dict[str, list[float]]:
    from qamoe.evaluation.bootstrap import weights
    from qamoe.evaluation.metrics import errors

    error = pd.Series(errors(rows), rows.index)
    by_cell = error.groupby([rows["source"], rows["cell"]]).mean().unstack("cell")
    weighted = by_cell @ (weights(rows) if by_cell.shape[1] > 1 else pd.Series(1.0, by_cell.columns))
    clips = rows.groupby("source")["clip_id"].nunique().reindex(weighted.index)
    return {
        str(source): [int(count), float(value)]
        for source, count, value in zip(weighted.index, clips, weighted, strict=True)
    }


def _correlations(rows: pd.DataFrame) -> dict[str, float]:
    present = {m: rows[(rows[f"frames_{m}"] > 0) & rows[f"r_{m}"].notna()] for m in MODALITIES}
    return {
        m: float(part[f"r_{m}"].rank().corr(part[f"severity_{m}"].rank())) for m, part in present.items() if len(part)
    }


def _routing(rows: pd.DataFrame) -> dict[str, list[float]]:
    levels = sorted({level for cell in rows["cell"].unique() for level in cell.split("-")[1:]})
    if levels[0] != "0.00" or rows["routing"].isna().all():  # without the undegraded cell there is nothing to compare
        return {}
    cells = {"clean": ("0.00", "0.00"), "noisy": (levels[-1], "0.00"), "lost": ("0.00", levels[-1])}
    means = {name: rows[rows["cell"] == "-".join((LANDSCAPE, *pair))] for name, pair in cells.items()}
    means["half"] = means["clean"].iloc[::2]
    return {name: np.stack(part["routing"].tolist()).mean(0).round(6).tolist() for name, part in means.items()}


def questions(lines: Iterable[Measures]) -> list[Claim]:
    """Return the claims that the models in these lines can decide, in the order of the paper."""
    by_model: dict[str, list[Measures]] = {}
    for line in lines:
        by_model.setdefault(line["model"], []).append(line)
    differences = [
        Claim(f"{ours}.{theirs}.{name}", statement, paper, f"{label} of {ours} less that of {theirs}", difference)
        for statement, paper, name, ours, theirs in COMPARISONS
        if (difference := compare(by_model, name, ours, theirs)) and (label := LABELS[name])
    ]
    return [*differences, *_of_reliability(by_model), *_of_routing(by_model)]


LABELS = {
    "clean": "error on clean clips",
    LANDSCAPE: "volume under the landscape",
    "paper_noise": "error along the noise",
    "subsets": "error over subsets of modalities",
    "missing": "error along missing frames",
    "mixed": "error on random mixtures of damage (slice mixed)",
}
_SPECTRUM = "Training on the whole spectrum beats training on clean clips"
# statement, second-hand figure of the paper, slice, the model that is claimed to have the lower error, the other
COMPARISONS = (
    (f"{_SPECTRUM}, along the spectrum", "", LANDSCAPE, SUBJECT, "paper--clean"),
    ("It costs nothing on clean clips", "", "clean", SUBJECT, "paper--clean"),
    (
        "The structure alone, trained on clean clips, beats the baseline with the same augmentation as ours",
        "Acc-7 53.6 against 52.5",
        LANDSCAPE,
        "paper--clean",
        BASELINE,
    ),
    ("With the same augmentation, the structure beats concatenation", "", LANDSCAPE, SUBJECT, BASELINE),
    ("The structure beats the same experts without reliability", "", LANDSCAPE, SUBJECT, "moe"),
    ("It is better on fixed subsets of modalities", "", "subsets", SUBJECT, BASELINE),
    (
        "It is better along the noise, all modalities present",
        "Acc-2 87.7 against 87.3 at λ .7",
        "paper_noise",
        SUBJECT,
        BASELINE,
    ),
    ("It is better on a random mixture", "Acc-7 44.6 against 33.5 at (.3, .2)", "mixed", SUBJECT, BASELINE),
    ("It is better on clean clips", "Acc-7 53.6 against 46.9", "clean", SUBJECT, BASELINE),
    ("The quality gate helps", "MAE .359 higher without it", LANDSCAPE, SUBJECT, "paper--no-gate"),
    ("The learned prior helps", "", LANDSCAPE, SUBJECT, "paper--no-prior"),
    ("Sampled features help", "", LANDSCAPE, SUBJECT, "paper--mu"),
    ("Several experts help", "", LANDSCAPE, SUBJECT, "paper--one-expert"),
    ("Three active experts are better than one", "peak at 3", LANDSCAPE, SUBJECT, "paper--top-1"),
    ("Three are better than two", "peak at 3", LANDSCAPE, SUBJECT, "paper--top-2"),
    ("Three are better than five", "peak at 3", LANDSCAPE, SUBJECT, "paper--top-5"),
    ("Three are better than all eight", "peak at 3", LANDSCAPE, SUBJECT, "paper--top-8"),
    ("With 260 training clips it still beats concatenation", "", LANDSCAPE, "paper--few", "concat--few"),
    ("The public code's recipe is better than the digest's", "", LANDSCAPE, "paper-public", SUBJECT),
    ("Our reconstruction is better than the paper as published", "", LANDSCAPE, "qamoe", SUBJECT),
)


def compare(by_model: dict[str, list[Measures]], name: str, ours: str, theirs: str) -> Verdict | None:
    """Return the difference of the errors of two models on a slice, means over seeds; None if one was not measured."""
    tables = []
    for model in (ours, theirs):
        lines = [line["errors"][name] for line in by_model.get(model, []) if name in line["errors"]]
        if not lines:
            return None
        tables.append(pd.DataFrame([{source: error for source, (_, error) in line.items()} for line in lines]).mean())
    clips = pd.Series({source: count for source, (count, _) in by_model[ours][0]["errors"][name].items()}, dtype=float)
    return _over_sources((tables[0] - tables[1]).reindex(clips.index), clips)


def _over_sources(values: pd.Series, clips: pd.Series) -> Verdict:
    """Return the mean over clips of a value by source, and its interval, by the draws and limits of `qamoe compare`."""
    from qamoe.evaluation.bootstrap import interval, over_sources

    rows = pd.DataFrame({"source": clips.index, "seed": 0, "cell": "", "draw": 0})
    sums = np.stack([values * clips, clips], axis=1)
    drawn, _ = over_sources(rows, sums, lambda means: means[..., 0] / means[..., 1])
    return Verdict(*interval(drawn[:, 0], len(clips)))


def _of_reliability(by_model: dict[str, list[Measures]]) -> list[Claim]:
    claims = []
    for modality in MODALITIES:
        values = [line["r"][modality] for line in by_model.get(SUBJECT, []) if modality in line.get("r", {})]
        if values:
            statement = f"r of {modality} falls with its damage"
            test = f"Spearman's correlation of r and severity over the landscape, {_seeds(len(values))}"
            claims.append(Claim(f"r.{modality}", statement, "negative and significant", test, _over_seeds(values)))
    return claims


def _of_routing(by_model: dict[str, list[Measures]]) -> list[Claim]:
    """Compare how far routing moves under damage with how far two samples of clean clips are apart."""
    claims = []
    for name, words in (("noisy", "noisy"), ("lost", "missing")):
        values = [
            _distance(routing["clean"], routing["half"]) - _distance(routing["clean"], routing[name])
            for line in by_model.get(SUBJECT, [])
            if (routing := line.get("routing"))
        ]
        if values:
            statement = f"Clean and {words} inputs use other experts"
            test = (
                "total variation of mean routing between all and every second clean clip, less that between clean and"
                f" {words} ones, {_seeds(len(values))}"
            )
            claims.append(Claim(f"routing.{name}", statement, "a figure shows it", test, _over_seeds(values)))
    return claims


def _distance(one: list[float], other: list[float]) -> float:
    return float(np.abs(np.array(one) - np.array(other)).sum() / 2)


def _seeds(count: int) -> str:
    return f"interval over {count} seeds (t)" if count > 1 else "one seed, no interval"


def _over_seeds(values: list[float]) -> Verdict:
    from scipy.stats import t

    mean = float(np.mean(values))
    if len(values) == 1:
        return Verdict(mean, float("nan"), float("nan"))
    half = float(t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return Verdict(mean, mean - half, mean + half)


COLUMNS = ["Claim", "The paper (second-hand)", "Ours [95 % interval]", "Verdict", "Test"]
WORDS = tuple(COLUMNS[1:])


def rows_of(claims: Iterable[Claim]) -> list[list[str]]:
    """Return the claims as rows under COLUMNS."""
    return [
        [
            claim.statement,
            claim.paper,
            f"{_signed(verdict.value)} [{_signed(verdict.low)}, {_signed(verdict.high)}]",
            verdict.words,
            claim.test,
        ]
        for claim in claims
        for verdict in [claim.verdict]
    ]


def _signed(value: float) -> str:
    return f"{value:+.3f}".replace("-", "−") if np.isfinite(value) else "not known"


def section(results: Results) -> Section[Figures]:
    """List the claims that the evaluated models decide; empty without the paper's model."""
    claims: list[Claim] = []
    if SUBJECT in results.models:
        runs = [(model, seed) for model, seeds in results.folders.items() for seed in seeds if model in _MODELS]
        claims = questions(measure(results, model, seed) for model, seed in runs)
    numbers: Numbers = {}
    for claim in claims:
        key = f"questions.{claim.key}"
        numbers |= {key: claim.verdict.value, f"{key}.low": claim.verdict.low, f"{key}.high": claim.verdict.high}
    text = (
        "Each claim of the paper that these models can decide. A negative difference is on the claim's side. It holds "
        "if its interval over test sources excludes 0 on that side. The paper's figures are second-hand and on other "
        "corpora."
    )
    title = "Questions of the paper"
    numbers = {name: value for name, value in numbers.items() if np.isfinite(value or 0.0)}
    figures = Figures(title, text, [], small=False, columns=COLUMNS, rows=rows_of(claims), words=WORDS)
    return Section(figures, numbers)


_MODELS = {SUBJECT} | {model for comparison in COMPARISONS for model in comparison[3:]}
