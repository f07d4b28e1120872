"""README.md and docs/: links resolve, generated parts are those of today's code, commands run, words are plain."""

import ast
import io
import os
import re
import shutil
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from qamoe.cli import predict
from qamoe.config.params import load
from qamoe.registry.gate import GateMeasurements, rules
from qamoe.report import tables
from qamoe.report.results import evaluations, read_cells
from scripts import docs
from tests.end_to_end.conftest import Run, finished, untouched  # noqa: F401
from tests.end_to_end.services import environment
from tests.registry.test_gate import measure
from tests.report.conftest import write_run

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
PAGES = [
    README,
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "NOTICE.md",
    *sorted(ROOT.glob("docs/**/*.md")),
]
# Entries of the lab notebook keep the wording of their day.
PLAIN = [page for page in PAGES if page.parent.name != "notebook" or page.name == "index.md"]
SOURCES = [path for folder in ("src", "flows", "scripts", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
GONE = (
    "is none of",
    "is no number",
    "stands twice",
    "lies behind",
    "anew",
    "but for",
    "a row a clip",
    "beside",
    "whoever",
    "what is asked",
)
COMMAND = re.compile(r"(make|qamoe|dvc) |make$|\. ")
# Commands of README.md that no test runs, each with the reason.
NOT_RUN = {
    "make demo": "installs",
    "make demo TORCH=cpu": "installs",
    ". .venv/bin/activate": "needs an installation",
    "make ui": "serves until it is stopped",
    "qamoe serve --clips data": "serves until it is stopped",
}


def blocks(language: str) -> list[str]:
    """The fenced blocks of README.md in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README.read_text(), re.DOTALL | re.MULTILINE)


def commands() -> list[str]:
    """The shell commands of README.md in their order: in blocks after `$ `, and in the text as inline code."""
    found = []
    for line in README.read_text().splitlines():
        if not line.startswith("    "):  # the list of packages
            inline = re.findall(r"`([^`]+)`", line)
            found += [line[2:]] if line.startswith("$ ") else [code for code in inline if COMMAND.match(code)]
    return found


def masked(text: str) -> list[str]:
    """Lines without what differs from run to run: numbers, the lengths of bars and of the lines of a table."""
    text = re.sub(r"[+−-]?\d+(\.\d+)?(e[+-]?\d+)?", "#", text)
    text = re.sub(r"[█░]+", "bar", text)
    text = re.sub(r"( +#: #%)+", " #: #%", text)
    return [" ".join(line.split()) for line in text.splitlines()]


# The README


def test_the_readme_is_short_and_begins_with_a_picture() -> None:
    lines = README.read_text().splitlines()
    assert len(lines) <= 120
    assert any(re.match(r"!\[.+\]\(docs/.+\.png\)", line) for line in lines[:25])


def test_the_readme_names_every_package_of_the_source() -> None:
    packages = {path.parent.name for path in (ROOT / "src/qamoe").glob("*/__init__.py")}
    assert set(re.findall(r"^    (\w+) +\w", README.read_text(), re.MULTILINE)) == packages


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    """Cells of the demo's models and seeds, with other numbers; read only."""
    folder = tmp_path_factory.mktemp("demo")
    for model, seeds in load(ROOT / "params.yaml").seeds.items():
        for seed in seeds:
            write_run(folder, model, seed)
    return read_cells(evaluations(folder / "evaluate"))


def reasons(gate: GateMeasurements) -> list[str]:
    """What the promotion gate says of a candidate that is good enough."""
    clean = gate.candidate[gate.candidate["slice"] == "clean"].set_index("clip_id").loc[gate.clips.index]
    answers = clean.rename(columns={"prediction": "score"})
    verdicts = [rule(gate, lambda clips: answers) for rule in rules(gate)]
    return [f"passed {verdict.rule}: {verdict.sentence}" for verdict in verdicts]


@pytest.mark.integration
def test_the_demos_output_has_the_form_of_today(cells: pd.DataFrame) -> None:
    today = docs.demo_block(cells, reasons(measure([0.1, -0.2, 0.1, 0.2, 0.1, -0.1])), "promoted")
    written = docs.block(README.read_text(), "demo")
    assert masked(written) == masked(today)
    assert len(written.splitlines()) == 8 + 2


@pytest.mark.integration
def test_the_table_of_results_has_the_form_of_today(cells: pd.DataFrame) -> None:
    assert masked(docs.block(README.read_text(), "results")) == masked(docs.results_block(cells))


@pytest.mark.integration
def test_the_prediction_has_the_form_of_today(
    checkpoint_folder: Path, film: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    assert predict.predict([film], docs.TEXT, None, "", checkpoint_folder, as_json=False)
    *today, _ = masked(docs.prediction_block(capsys.readouterr().out))
    *written, end = masked(docs.block(README.read_text(), "prediction"))
    assert written[:-1] == today[:-1]
    assert (written[-1], end) == ("qa-moe version # (champion)", "```")


def test_without_a_demo_the_documentation_is_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["docs"])
    with pytest.raises(SystemExit) as ended:
        docs.main()
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert "artifacts/report/index.html" in error
    assert "make demo" in error
    assert error.count("\n") == 1


# The site


@pytest.mark.parametrize("columns", ["40", "200"])
def test_the_command_reference_is_that_of_the_code(columns: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert (ROOT / docs.COMMAND_LINE).read_text() == docs.command_line(), "python -m scripts.docs --reference"


def leaves(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of a parameter file by dotted key; an empty block is a value."""
    found: dict[str, Any] = {}
    for key, value in content.items():
        found |= leaves(value, f"{prefix}{key}.") if isinstance(value, dict) and value else {f"{prefix}{key}": value}
    return found


def test_every_parameter_is_documented_with_its_value() -> None:
    page = (ROOT / "docs/reference/parameters.md").read_text()
    documented: dict[str, Any] = {}
    for section, body in re.findall(r"^## `([\w.-]+)`\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE):
        for key, cell in re.findall(r"^\| `([\w.]+)` \| ([^|]*) \|", body, re.MULTILINE):
            value = yaml.safe_load(cell.replace("`", ""))
            documented |= leaves({f"{section}.{key}": value})
    parameters = leaves(yaml.safe_load((ROOT / "params.yaml").read_text()))
    same = {key for key in parameters if key.startswith("models.oracle.")}  # the page says: as qamoe
    assert {key: value for key, value in parameters.items() if key not in same and documented.get(key) != value} == {}


@pytest.mark.integration
def test_the_headline_is_documented_with_its_labels(cells: pd.DataFrame) -> None:
    page = (ROOT / "docs/reference/metrics.md").read_text()
    documented = re.findall(r"^\| (.+?) \| `([\w.]+)` \| (?:lower|higher|near)", page, re.MULTILINE)
    assert documented == [(column.label, column.name) for column in tables.columns_of(cells)]


def test_every_environment_variable_is_documented() -> None:
    page = (ROOT / "docs/reference/environment.md").read_text()
    read = set(re.findall(r'"(QAMOE_\w+)"', (ROOT / "src/qamoe/config/settings.py").read_text()))
    assert {name for name in read if f"`{name}`" not in page} == set()


def github_anchor(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def site_anchor(heading: str) -> str:
    return re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower())


def anchors(page: Path) -> set[str]:
    """The anchors that both GitHub and the site give the headings of a page."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = [
        re.sub(r"`|\[([^\]]*)\]\([^)]*\)", r"\1", line) for line in re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    ]
    return {github_anchor(h) for h in headings} & {site_anchor(h) for h in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    dead = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?://|mailto:", target):
            continue
        name, _, anchor = target.partition("#")
        file = page if not name else page.parent / name
        if not file.exists() or (anchor and anchor not in anchors(file)):
            dead.append(target)
        if page.is_relative_to(ROOT / "docs") and not file.resolve().is_relative_to(ROOT / "docs"):
            dead.append(f"{target} is outside docs/, where the site has no page")
    assert dead == []


def test_every_page_is_in_the_navigation() -> None:
    listed = re.findall(r'= "([\w/-]+\.md)"', (ROOT / "zensical.toml").read_text())
    assert sorted(listed) == sorted(str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md"))


@pytest.mark.integration
def test_the_site_builds_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    zensical = shutil.which("zensical", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if zensical is None:
        pytest.skip("zensical is not installed")
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "zensical.toml", tmp_path)
    done = subprocess.run([zensical, "build", "--strict"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in (done.stdout + done.stderr).lower()
    loaded = re.compile(r'<(?:link|script|img|iframe|source)\b[^>]*(?:href|src)="(?:https?:)?//[^"]*"')
    found = {match for page in (tmp_path / "site").rglob("*.html") for match in loaded.findall(page.read_text())}
    assert {match for match in found if 'rel="canonical"' not in match} == set()
    assert not any('class="mermaid"' in page.read_text() for page in (tmp_path / "site").rglob("*.html"))


# Words


def wording(path: Path) -> Iterator[tuple[int, str]]:
    """The texts of a file for people, each with its line: a whole page; of a source, comments and string literals."""
    text = path.read_text()
    if path.suffix != ".py":
        yield 1, text
        return
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.lineno, node.value
    comments = [t for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type == tokenize.COMMENT]
    for number, token in enumerate(comments):
        following = comments[number + 1].string if number + 1 < len(comments) else ""
        yield token.start[0], f"{token.string} {following.lstrip('# ')}"  # a phrase may go on in the next line


def gone(path: Path) -> list[str]:
    """Phrases of GONE in a file, with the line on which the text that holds them begins."""
    found = []
    for line, text in wording(path):
        for phrase in GONE:
            if re.search(rf"\b{phrase}\b".replace(" ", r"\s+"), text, re.IGNORECASE):
                found.append(f"{path.relative_to(ROOT) if path.is_relative_to(ROOT) else path}:{line}: {phrase}")
    return found


@pytest.mark.parametrize("text", ['"""One thing\nanew."""', "x = f'{1} is none of them'", "# Is no\n# number."])
def test_a_phrase_is_found_in_docstrings_strings_and_comments(text: str, tmp_path: Path) -> None:
    (tmp_path / "source.py").write_text(f"{text}\n")
    assert len(gone(tmp_path / "source.py")) == 1
    (tmp_path / "source.py").write_text("anew = beside = 1  # a name is not a text\n")
    assert gone(tmp_path / "source.py") == []


def test_pages_are_in_plain_words() -> None:
    assert [phrase for page in PLAIN for phrase in gone(page)] == []


@pytest.mark.integration
def test_sources_are_in_plain_words() -> None:
    assert [phrase for path in SOURCES for phrase in gone(path)] == []


# Commands


def test_the_commands_that_are_not_run_are_in_the_readme() -> None:
    assert set(NOT_RUN) - set(commands()) == set()


@pytest.mark.slow
def test_the_commands_of_the_readme_run(finished: Run, tmp_path: Path) -> None:  # noqa: F811
    """In a checkout whose pipeline has run, with fewer clips and smaller models."""
    checkout, surroundings = finished.checkout, environment(finished.checkout, tmp_path / "prefect")
    text = README.read_text()
    own, folder = checkout / "experiments", checkout / "data-mine"
    clip = sorted((checkout / "data/media").iterdir())[0].relative_to(checkout)
    shutil.copytree(checkout / "data", folder)
    (folder / "corpus.json").unlink()
    own.mkdir(exist_ok=True)
    overlay = re.findall(r"`((?:extract|registry): \{[^`]+\})`", text)[:2]
    (own / "mine.yaml").write_text("\n".join(overlay))

    def run(*command: str) -> str:
        changed = [part.replace(str(docs.CLIP), str(clip)) for part in command]
        done = subprocess.run(changed, cwd=checkout, env=surroundings, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    for name, value in (("user.name", "someone"), ("user.email", "someone@example.org")):  # README.md asks for them
        run("git", "config", name, value)
    for command in commands():
        if command not in NOT_RUN:
            run("bash", "-c", command)
    run("bash", "-c", f"{docs.PREDICT} --params artifacts-mine/params.yaml")
    (code,) = blocks("python")
    assert "score" in run(sys.executable, "-c", code)
