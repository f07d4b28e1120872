"""The registered model: the file that MLflow runs to load it (models from code), in any Python with its requirements.

qamoe is imported only inside functions, when the model's own copy of the code is on the path. load_context reads the
weights.
"""

from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class SentimentModel(PythonModel):
    """Predicts clips given as rows; qamoe.inference.predict documents the input and output columns.

    With model_config={"paths": True}, rows may name media files instead (qamoe.inference.path_inputs). MLflow's server
    refuses this setting: its clients could otherwise choose the files that it opens.
    """

    def load_context(self, context: Any) -> None:
        """Load the logged checkpoint."""
        from qamoe.config import settings
        from qamoe.models import checkpoint

        self.paths = bool((context.model_config or {}).get("paths", False))
        if self.paths:
            from qamoe.inference.path_inputs import in_a_server

            if in_a_server():
                raise MlflowException.invalid_parameter_value(
                    "A server must not open paths; load the model without model_config paths."
                )
        settings.go_offline()
        self.device = settings.device()
        self.trained = checkpoint.load(Path(context.artifacts["config"]).parent, self.device)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Predict one row per clip. Invalid input is a client error (400), not a server error.

        model_input: a table; a list of dictionaries, one per clip; a dictionary of columns, or of one clip; or a text
        or a list of texts. MLflow does not check it, because it would drop unknown columns without a word; it warns
        of an annotation with other types than a table.
        """
        from qamoe.errors import UserError
        from qamoe.inference.predict import predict

        try:
            return predict(self.trained, self._features(_rows(model_input)), self.device)
        except UserError as refusal:
            raise MlflowException.invalid_parameter_value(str(refusal)) from None

    def _features(self, rows: pd.DataFrame) -> pd.DataFrame:
        from qamoe.errors import UserError
        from qamoe.inference import path_inputs, predict

        known = (*predict.INPUTS, *path_inputs.INPUTS)
        for column in rows:
            if column not in known:
                raise UserError(f"Unknown column {column!r}; allowed are {', '.join(known)}.")
        if self.paths:
            return path_inputs.with_features(self.trained.config, rows)
        if "path" in rows and rows["path"].notna().any():
            raise UserError(
                'The column path is only read by a program that loads the model with model_config={"paths": True}.'
            )
        return rows


def _rows(given: Any) -> pd.DataFrame:
    """Return the input of `predict` as a table. Raises UserError for another type."""
    from qamoe.errors import UserError

    if isinstance(given, pd.DataFrame):
        return given
    if isinstance(given, dict):
        given = _plain(given)
        values = list(given.values())
        one_clip = any(value is None or isinstance(value, str) or not hasattr(value, "__len__") for value in values)
        if not one_clip and len({len(value) for value in values}) > 1:
            raise UserError("The columns of a dictionary must have the same number of rows.")
        columns = {name: [value] if one_clip else list(value) for name, value in given.items()}
        return pd.DataFrame({name: pd.Series(column, dtype=object) for name, column in columns.items()})
    clips = [given] if isinstance(given, str) or not hasattr(given, "__iter__") else list(given)
    if given is not None and all(isinstance(clip, str) or clip is None for clip in clips):
        return pd.DataFrame({"text": pd.Series(clips, dtype=object)})
    if all(isinstance(clip, dict) for clip in clips):
        return pd.DataFrame([_plain(clip) for clip in clips]).astype(object)
    raise UserError(
        f"The input is {type(given).__name__}; it must be a table, a list of dictionaries with one clip each, or a"
        " list of texts."
    )


def _plain(clip: dict[str, Any]) -> dict[str, Any]:
    """Return a clip without the arrays of no dimension into which MLflow's server turns single values."""
    return {name: value.item() if getattr(value, "ndim", 1) == 0 else value for name, value in clip.items()}


set_model(SentimentModel())
