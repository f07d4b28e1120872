"""The meaning of a model's name: its class, and the degradations, the ablation or the base that it is trained with.

Unlike config/params.py, this module is part of the code digest, because it decides what is trained.
"""

import re

ABLATIONS = ("severity", "others", "probe", "fallback", "gate", "fusion")  # parts of QA-MoE: models/qamoe.py


def specialist_cell(name: str) -> tuple[str, float] | None:
    """Return kind and severity of the one cell that a specialist is trained for; None for any other model.

    Names are `specialist-clean` and `specialist-<kind>-<severity in tenths>`, such as specialist-missing-03.
    pipeline/known_names.py refuses unknown kinds.
    """
    if name == "specialist-clean":
        return "clean", 0.0
    parts = re.fullmatch(r"specialist-(?!clean-)([a-z_]+)-(0[1-9]|10)", name)
    return (parts[1], int(parts[2]) / 10) if parts else None


def ablated(name: str) -> str | None:
    """Return the part that an ablation of QA-MoE leaves out ("gate" for ablation-gate); None for any other model."""
    part = name.removeprefix("ablation-")
    return part if part != name and part in ABLATIONS else None


def variant_base(name: str) -> str | None:
    """Return the model that a variant differs from ("paper" for paper--top-1); None for any other model.

    A label has lower-case letters, digits and single hyphens, 40 characters at most: it names folders. Specialists and
    ablations have no variants.
    """
    parts = re.fullmatch(r"(.+?)--(?=.{1,40}$)[a-z0-9]+(?:-[a-z0-9]+)*", name)
    return parts[1] if parts and not specialist_cell(parts[1]) and not ablated(parts[1]) else None


def family(name: str) -> str:
    """Return the model whose class a model has: qamoe for specialists and ablations, the base for variants."""
    return "qamoe" if specialist_cell(name) or ablated(name) else variant_base(name) or name
