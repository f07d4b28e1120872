"""Prefect flows that run stages, retry them, and promote models. Only this package imports Prefect.

Each flow can run on its own: `python -m flows.NAME`. Without a configured server, Prefect starts a temporary one.
"""

import os

from qamoe.config import settings

# Prefect reads these settings when it is imported.
settings.go_offline()
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")  # the default, 20 s, is too short
