"""What the name of a model says: which class it is of, and under what it is trained.

Unlike config/params.py, this module is part of the digest of the code: it decides what is trained.
"""

import re

ABLATIONS = ("severity", "others", "probe", "fallback", "gate", "fusion")  # parts of QA-MoE: models/qamoe.py


def specialist_cell(name: str) -> tuple[str, float] | None:
    """Kind and severity of the one cell that a specialist lives in; None where the name is another model's.

    `specialist-clean`, and `specialist-<kind>-<severity in tenths>` such as specialist-missing-03. Which kinds there
    are is known above config: pipeline/known_names.py refuses others.
    """
    if name == "specialist-clean":
        return "clean", 0.0
    parts = re.fullmatch(r"specialist-(?!clean-)([a-z_]+)-(0[1-9]|10)", name)
    return (parts[1], int(parts[2]) / 10) if parts else None


def ablated(name: str) -> str | None:
    """The part that QA-MoE lacks in a model of this name, such as ablation-gate; None where it is another model's."""
    part = name.removeprefix("ablation-")
    return part if part != name and part in ABLATIONS else None


def family(name: str) -> str:
    """The model of params.yaml whose class and block a model has: specialists and ablations are a qamoe."""
    return "qamoe" if specialist_cell(name) or ablated(name) else name
