"""The registered model: the file that MLflow runs to load one (models from code), in any Python with its requirements.

Nothing of qamoe is imported before the model's own copy of the code is on the path, and no weights are read before
load_context.
"""

from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class SentimentModel(PythonModel):
    """Predicts clips given as rows; qamoe.inference.predict says which columns there may be and which come back.

    Loaded with model_config={"paths": True}, rows may name media files instead (qamoe.inference.path_inputs). A server
    that MLflow runs cannot be loaded so: its clients would choose what files it opens.
    """

    def load_context(self, context: Any) -> None:
        """Load the checkpoint that was logged as artifacts."""
        from qamoe.config import settings
        from qamoe.models import checkpoint

        self.paths = bool((context.model_config or {}).get("paths", False))
        if self.paths:
            from qamoe.inference.path_inputs import in_a_server

            if in_a_server():
                raise MlflowException.invalid_parameter_value("A server opens no paths: leave model_config paths out.")
        settings.go_offline()
        self.device = settings.device()
        self.trained = checkpoint.load(Path(context.artifacts["config"]).parent, self.device)

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """A row of scores for each row of clips; input that is refused is a client's error (400), not a server's."""
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
                'A path is opened for a program that loads the model with model_config={"paths": True} alone.'
            )
        return rows


set_model(SentimentModel())
