"""Events: when a stage starts, what is tried again, when a model is promoted. The only importer of Prefect.

Each flow runs alone: `python -m flows.NAME`. Without a configured server, Prefect starts one for that time.
"""

import os

from qamoe.config import settings

# Prefect reads both when it is imported, so they cannot wait for an entry point.
settings.go_offline()
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")  # its 20 s are short on a busy machine
