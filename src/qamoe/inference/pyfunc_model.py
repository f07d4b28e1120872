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
        """Predict one row per clip. Invalid input is a client error (400), not a server error."""
        from qamoe.errors import UserError
        from qamoe.inference.predict import predict

        try:
            return predict(self.trained, self._features(model_input), self.device)
        except UserError as refusal:
            raise MlflowException.invalid_parameter_value(str(refusal)) from None

    def _features(self, rows: pd.DataFrame) -> pd.DataFrame:
        from qamoe.errors import UserError

        if self.paths:
            from qamoe.inference.path_inputs import with_features

            return with_features(self.trained.config, rows)
        if "path" in rows and rows["path"].notna().any():
            raise UserError(
                'The column path is only read by a program that loads the model with model_config={"paths": True}.'
            )
        return rows


set_model(SentimentModel())
