"""A registered model in a Python program: qamoe.load_champion()."""

from pathlib import Path
from typing import Any

import pandas as pd

from qamoe.config import settings
from qamoe.errors import UserError
from qamoe.inference import path_inputs, predict
from qamoe.registry.local_lookup import champion_address
from qamoe.serving.model_loader import Served, open_model


class Model:
    """A model that predicts clips. `name` says which one it is, such as "qa-moe version 3 (champion)"."""

    def __init__(self, served: Served) -> None:
        self._served = served
        self.name = served.name

    def __repr__(self) -> str:
        return f"<{self.name}>"

    def predict(self, clips: pd.DataFrame | list[dict[str, Any]]) -> pd.DataFrame:
        """Predict clips: one row per clip with score or class, interval, trust, r and routing.

        A clip has some of `text`, `audio` and `vision` (raw frames; see qamoe.inference.predict), or the `path` of a
        media file, with `start_s` and `end_s` in seconds if only a part is meant. A modality that is not given counts
        as missing. Other columns of a table are ignored. Raises UserError for a clip that cannot be used, and for an
        unknown key of a dictionary.
        """
        rows = clips if isinstance(clips, pd.DataFrame) else _rows(clips)
        return self._served.predict(path_inputs.with_features(self._served.trained.config, rows))


def _rows(clips: list[dict[str, Any]]) -> pd.DataFrame:
    known = (*predict.INPUTS, *path_inputs.INPUTS)
    for number, clip in enumerate(clips):
        for key in clip:
            if key not in known:
                raise UserError(f"Clip {number}: unknown key {key!r}; allowed are {', '.join(known)}.")
    return pd.DataFrame(clips).astype(object)


def load(params: Path, model: str | None = None) -> Model:
    """Load `model`, or the champion of registry.name in a parameter file. Raises UserError where there is none."""
    settings.go_offline()
    return Model(open_model(model or champion_address(params), None))
