"""A new corpus, degradation or model needs a line in its registry only; params.yaml may then name it."""

import copy
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from pydantic import Field

from qamoe.config.block import Block
from qamoe.data.readers import READERS
from qamoe.degradation import features
from qamoe.errors import UserError
from qamoe.evaluation import protocol
from qamoe.models import baselines
from qamoe.models.factory import MODELS, block_of, build
from qamoe.models.heads import Target
from qamoe.pipeline import known_names
from qamoe.pipeline.known_names import load_params

ROOT = Path(__file__).parents[2]
SHIPPED = yaml.safe_load((ROOT / "params.yaml").read_text())


class Wide(baselines.Concat):
    """A model with a block of its own."""

    class Block(Block):  # type: ignore[misc]
        hidden: Annotated[int, Field(ge=1)]
        times: Annotated[int, Field(ge=2)]


@pytest.fixture
def params_with(tmp_path: Path) -> Any:
    """A params.yaml with some sections changed: params_with(seeds={...})."""

    def make(**sections: dict[str, Any]) -> Path:
        content = copy.deepcopy(SHIPPED)
        for section, changes in sections.items():
            content[section] |= changes
        path = tmp_path / "params.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return make


def train_on_fog(common: dict[str, Any]) -> dict[str, Any]:
    """Return the section train with the kind fog in training and in the selection of checkpoints."""
    changed = copy.deepcopy(common)
    changed["degrade"]["kinds"] = ["noise", "fog"]
    changed["selection"]["severities"] = {"fog": [0.5]}
    return {"common": changed}


def test_a_new_reader_needs_only_a_line_in_its_registry(params_with: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = params_with(extract={"corpus": {"kind": "tapes", "path": "data"}})
    with pytest.raises(UserError, match=r"extract\.corpus\.kind .*'tapes'.*'sample'.*'meld'"):
        load_params(path)
    monkeypatch.setitem(READERS, "tapes", READERS["sample"])
    assert load_params(path).extract.corpus.kind == "tapes"


def test_a_new_kind_of_degradation_needs_only_a_line_in_its_registry(
    params_with: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sections = {
        "train": train_on_fog(SHIPPED["train"]["common"]),
        "evaluate": {"slices": ["clean", "fog"]},
        "seeds": {"specialist-fog-03": [1]},
    }
    for section, changes in sections.items():
        with pytest.raises(UserError, match="fog"):
            load_params(params_with(**{section: changes}))
    monkeypatch.setitem(features.FRAMES, "fog", features.noise_frames)
    params = load_params(params_with(**sections))
    cells = protocol.plan(params.evaluate.slices, params.evaluate)
    assert [cell.name for cell in cells if cell.slice == "fog"][-1] == "fog-1.0"


def test_a_new_model_needs_only_a_line_in_its_registry(params_with: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    sections = {"models": {"wide": {"hidden": 8, "times": 2}}, "seeds": {"wide": [1, 2]}}
    with pytest.raises(UserError, match=r"models\.wide\b.*mean, "):
        load_params(params_with(**sections))
    monkeypatch.setitem(MODELS, "wide", Wide)
    params = load_params(params_with(**sections))
    assert params.seeds["wide"] == (1, 2)
    block = block_of(params.models, "wide")
    assert isinstance(block, Wide.Block)
    model = build("wide", {"text": 4}, params.models.encoders, block, Target(0.0, 1.0))
    assert isinstance(model, Wide)

    with pytest.raises(UserError, match=r"models\.wide\.times is 1\b.*\b2\b"):
        load_params(params_with(**sections | {"models": {"wide": {"hidden": 8, "times": 1}}}))
    with pytest.raises(UserError, match=r"params\.yaml.*models\.wide"):
        load_params(params_with(seeds=sections["seeds"]))


def test_a_new_kind_is_one_function_and_one_line(tmp_path: Path) -> None:
    """Add both to a copy of the sources: the kind is drawn, applied and planned."""
    sources = tmp_path / "src"
    shutil.copytree(Path(known_names.__file__).parents[1], sources / "qamoe")
    path = sources / "qamoe/degradation/features.py"
    source = path.read_text()
    function = (
        "def halved_frames(x, mask, severity, draws, reference):\n"
        "    halves = 0.5 + 0.1 * (draws.uniform(x.shape[1]) > 2)[..., None]\n"  # draws from its own random stream
        "    return Degraded(x * halves, mask, severity)\n\n\n"
    )
    line = 'FRAMES: dict[str, Degradation] = {\n    "halved": halved_frames,\n'
    path.write_text(source.replace("FRAMES: dict[str, Degradation] = {\n", function + line))
    script = """
import torch
from qamoe.degradation.features import KINDS, Draws, Reference, degrade, drawn_state
from qamoe.evaluation.protocol import slice_names
from qamoe.rng import clip_key
x = torch.ones(2, 3, 4)
kind = torch.full((2,), KINDS.index("halved"))
keys = torch.tensor([clip_key("a"), clip_key("b")])
result = degrade(x, torch.ones(2, 3, dtype=torch.bool), kind, torch.ones(2), lambda k: Draws(1, keys, "audio", k, 0),
                 Reference())
assert (result.x == 0.5).all() and "halved" in slice_names()
assert (drawn_state(1, keys, 0, kinds=("halved",)).kind == KINDS.index("halved")).all()
"""
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, env={"PYTHONPATH": str(sources)}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_command_without_models_loads_parameters_without_torch() -> None:
    script = (
        "import sys\nfrom pathlib import Path\nfrom qamoe.pipeline.known_names import load_params\n"
        f"load_params(Path({str(ROOT / 'params.yaml')!r}), ['extract'])\n"
        "import qamoe.pipeline.record, qamoe.pipeline.report, qamoe.pipeline.experiment\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
