"""A prediction for one clip imports only the libraries that it needs."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qamoe.registry import registry
from qamoe.tracking.runs import record_training
from tests.fixtures.served import written

# Each of these takes seconds to import, and a prediction needs none.
SLOW = ("mlflow", "transformers", "matplotlib", "scipy", "fastapi", "optuna", "mediapipe", "opensmile")
PREDICT = """
import json, sys
from pathlib import Path
from qamoe.cli import predict
predict.predict([Path(sys.argv[1])], "a lovely film", None, "models:/qa-moe@champion", None, True)
print(json.dumps([name for name in sys.argv[2:] if name in sys.modules]))
"""


def test_the_extraction_process_starts_before_torch_is_imported() -> None:
    """Both take seconds and run in parallel; the extraction process does not need torch."""
    code = "import sys; import qamoe.cli.predict, qamoe.inference.extraction_worker; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.slow
def test_a_prediction_of_the_champion_imports_no_unneeded_library(
    records: Any, tiny_checkpoint: Callable[..., Path], tmp_path: Path, voice: np.ndarray
) -> None:
    run = records.get_run(record_training(records, tiny_checkpoint(tmp_path / "1"), "qa-moe"))
    records.set_registered_model_alias("qa-moe", "champion", registry._register(records, "qa-moe", run))
    clip = written(tmp_path / "clip.wav", voice)
    done = subprocess.run(
        [sys.executable, "-c", PREDICT, str(clip), *SLOW],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer, loaded = map(json.loads, done.stdout.splitlines())
    assert answer["model"] == "qa-moe version 1 (champion)"
    assert answer["trust"]["audio"] is not None
    assert loaded == []
