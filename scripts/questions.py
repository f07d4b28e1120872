"""Answer the questions of the paper on a generated corpus, resumable by model and seed, and write the page.

    python -m scripts.questions paper-sample 54 --clips 960     # hours on two cores; measures what the file lacks
    python -m scripts.questions paper-table 54 --clips 3200
    python -m scripts.questions --page                          # the tables of docs/how/what-holds.md

The file docs/notebook/questions/EXPERIMENT-SEED.jsonl has one line of measures for each model and training seed
(report/questions.py). It is appended to after as many seeds as train side by side, so a cut costs no more than those.
The corpus and the last checkpoints lie in artifacts-EXPERIMENT-SEED/. The corpus is made again if it is gone; a model
that has its line is not trained again, and its checkpoint is deleted when the next seed is trained.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from qamoe.config import params as parameters
from qamoe.config import settings
from qamoe.config.overlay import experiment_content
from qamoe.errors import UserError, exit_on_user_error
from qamoe.files import atomic_write
from qamoe.report import questions, results

LINES = Path("docs/notebook/questions")
PAGE = Path("docs/how/what-holds.md")
FIRST = ("paper", "concat")  # what most questions compare


def main() -> None:
    parser = argparse.ArgumentParser("questions", description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("experiment", nargs="?", help="paper-sample or paper-table")
    parser.add_argument("seed", nargs="?", type=int, help="of the sample generator")
    parser.add_argument("--clips", type=int, default=960)
    parser.add_argument("--page", action="store_true", help="write the tables of the page")
    given = parser.parse_args()
    if (given.experiment is None or given.seed is None) and not (given.page and given.experiment is None):
        parser.error("give an experiment and the seed of its corpus, or --page alone")
    with exit_on_user_error("questions"):
        if given.experiment:
            answer(given.experiment, given.seed, given.clips)
        if given.page:
            write_page()


def answer(experiment: str, seed: int, clips: int) -> None:
    """Measure every model and seed of an experiment that its file of lines lacks.

    Raises UserError for another corpus than a generated one, and for another number of clips than lines or corpus have.
    """
    out = Path(f"artifacts-{experiment}-{seed}")
    content = experiment_content(experiment, Path("params.yaml"), Path("experiments"))
    corpus = content["extract"]["corpus"]
    if corpus["kind"] != "sample":
        raise UserError(f"experiment {experiment}: extract.corpus.kind is {corpus['kind']!r}; questions need 'sample'")
    corpus["path"] = str(out / "data")
    file = LINES / f"{experiment}-{seed}.jsonl"
    known = read(file)
    _same_clips(clips, file, {line["clips"] for line in known})
    if (manifest := out / "data/manifest.csv").is_file():
        _same_clips(clips, manifest, {len(pd.read_csv(manifest))})
    LINES.mkdir(parents=True, exist_ok=True)
    with atomic_write(file) as path:
        path.write_text("".join(json.dumps(line) + "\n" for line in known))
    done = {(line["model"], line["seed"]) for line in known}
    listed = [(model, number) for model, numbers in content["seeds"].items() for number in numbers if model != "mean"]
    # All models with seed 1 first, so that a part of the lines is a table already.
    listed.sort(key=lambda pair: (pair[1], pair[0] not in FIRST))
    waiting = [pair for pair in listed if pair not in done]
    if waiting and not manifest.is_file():
        _run("sample", str(out / "data"), "--clips", str(clips), "--seed", str(seed))
    side_by_side = settings.workers()
    while waiting:
        now, waiting = waiting[:side_by_side], waiting[side_by_side:]
        seeds: dict[str, list[int]] = {}
        for model, number in now:
            seeds.setdefault(model, []).append(number)
        used = _params(out, content | {"seeds": seeds})
        for stage in ("extract", "preprocess") if not (out / "preprocess/stats.json").is_file() else ():
            _run("run", stage, "--params", str(used), "--out", str(out))
        for stage in ("train", "evaluate"):
            _run("run", stage, "--params", str(used), "--out", str(out))
        measured = results.read(out / "evaluate", out / "train", list(seeds))
        with file.open("a") as lines:
            for model, number in now:
                line = {"experiment": experiment, "corpus_seed": seed, "clips": clips}
                line |= questions.measure(measured, model, number) | areas_of(measured, model, number)
                lines.write(json.dumps(line, allow_nan=False) + "\n")
        print(f"{file}: {', '.join(f'{model} {number}' for model, number in now)}; {len(waiting)} left", flush=True)


def areas_of(measured: results.Results, model: str, seed: int) -> dict[str, Any]:
    """Return the metrics of a checkpoint that the table of the page has, by slice: those of the summary."""
    from qamoe.evaluation.summary import summarise

    cells = measured.cells[(measured.cells["model"] == model) & (measured.cells["seed"] == seed)]
    summary = summarise(cells.drop(columns=["model", "seed"]))
    shown = summary[summary["metric"].isin(["mae", "acc7", "corr", "coverage_90"])]
    names = shown["slice"] + "." + shown["metric"]
    return {"areas": pd.Series(shown["area"].to_numpy(), names).dropna().round(6).to_dict()}


def read(file: Path) -> list[dict[str, Any]]:
    """Return the lines of a file; none if it does not exist, and without a last one that is cut.

    Raises UserError for any other line that is not JSON, and for a second line of a model and seed.
    """
    lines: list[dict[str, Any]] = []
    texts = file.read_text().splitlines() if file.is_file() else []
    for number, text in enumerate(texts, 1):
        try:
            line = json.loads(text)
        except ValueError:
            if number < len(texts):
                raise UserError(f"{file}, line {number}: {text[:40]!r} is not a line of measures in JSON") from None
            break
        if any((line["model"], line["seed"]) == (other["model"], other["seed"]) for other in lines):
            raise UserError(f"{file}, line {number}: a second line of {line['model']}, seed {line['seed']}")
        lines.append(line)
    return lines


def _same_clips(clips: int, file: Path, present: set[int]) -> None:
    if present - {clips}:
        raise UserError(f"--clips is {clips}, and {file} is of {', '.join(map(str, sorted(present)))} clips")


def _params(out: Path, content: dict[str, Any]) -> Path:
    out.mkdir(exist_ok=True)
    path = out / "params.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    parameters.load(path)
    return path


def _run(*arguments: str) -> None:
    environment = os.environ | {"QAMOE_TRACKING": "off"}
    done = subprocess.run([sys.executable, "-m", "qamoe", *arguments], env=environment, check=False)
    if done.returncode:  # qamoe has said why
        sys.exit(done.returncode)


def write_page() -> None:
    """Write the tables of all files of lines into the page, between its comments."""
    text = PAGE.read_text()
    begin, end = "<!-- generated by scripts/questions.py -->\n", "<!-- end -->"
    before, rest = text.split(begin)
    _, after = rest.split(end, 1)
    parts = [part for file in sorted(LINES.glob("*.jsonl")) if read(file) for part in _of_file(file)]
    PAGE.write_text(before + begin + "\n" + "\n".join(parts) + "\n" + end + after)


def _of_file(file: Path) -> list[str]:
    lines = read(file)
    seeds = {model: sum(line["model"] == model for line in lines) for model in sorted({li["model"] for li in lines})}
    one = lines[0]
    title = f"### {one['experiment']}, {one['clips']:,} clips, generator seed {one['corpus_seed']}\n"
    return [title, _table(lines, seeds), _markdown(questions.COLUMNS, questions.rows_of(questions.questions(lines)))]


def _table(lines: list[dict[str, Any]], seeds: dict[str, int]) -> str:
    shown = ("clean.mae", "landscape.mae", "landscape.acc7", "missing.mae", "mixed.mae", "mixed.coverage_90")
    rows = []
    for model in sorted(seeds, key=lambda name: _mean(lines, name, shown[1])):
        values = [
            f"{_mean(lines, model, name):.3f} ± {_deviation(lines, model, name):.3f}"
            if seeds[model] > 1
            else f"{_mean(lines, model, name):.3f}"
            for name in shown
        ]
        rows.append([f"`{model}`", str(seeds[model]), *values])
    return _markdown(["Model", "Seeds", *(f"`{name}`" for name in shown)], rows)


def _values(lines: list[dict[str, Any]], model: str, name: str) -> pd.Series:
    of_model = [line["areas"] for line in lines if line["model"] == model]
    return pd.Series([areas[name] for areas in of_model if name in areas], dtype=float)


def _mean(lines: list[dict[str, Any]], model: str, name: str) -> float:
    return float(_values(lines, model, name).mean())


def _deviation(lines: list[dict[str, Any]], model: str, name: str) -> float:
    return float(_values(lines, model, name).std())


def _markdown(columns: list[str], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


if __name__ == "__main__":
    main()
