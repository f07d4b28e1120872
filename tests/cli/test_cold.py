"""What a person waits for who asks about one clip: nothing is loaded that the answer does not need."""

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

# Seconds each, and none of them of use here.
SLOW = ("mlflow", "transformers", "matplotlib", "scipy", "fastapi", "optuna", "mediapipe", "opensmile")
ASK = """
import json, sys
from pathlib import Path
from qamoe.cli import predict
predict.predict([Path(sys.argv[1])], "a lovely film", None, "models:/qa-moe@champion", None, True)
print(json.dumps([name for name in sys.argv[2:] if name in sys.modules]))
"""


def test_the_process_that_reads_media_is_started_before_torch_is_loaded() -> None:
    """Both take seconds, and get ready side by side; nor does that process need torch."""
    code = "import sys; import qamoe.cli.predict, qamoe.inference.extraction_worker; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


@pytest.mark.slow
def test_an_answer_of_the_champion_waits_for_no_library_that_it_does_not_need(
    records: Any, tiny_checkpoint: Callable[..., Path], tmp_path: Path, voice: np.ndarray
) -> None:
    run = records.get_run(record_training(records, tiny_checkpoint(tmp_path / "1"), "qa-moe"))
    records.set_registered_model_alias("qa-moe", "champion", registry._register(records, "qa-moe", run))
    clip = written(tmp_path / "clip.wav", voice)
    done = subprocess.run(
        [sys.executable, "-c", ASK, str(clip), *SLOW],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer, loaded = map(json.loads, done.stdout.splitlines())
    assert answer["model"] == "qa-moe version 1 (champion)"
    assert answer["trust"]["audio"] is not None
    assert loaded == []
