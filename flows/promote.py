"""Candidate -> champion, where the gate lets it through: an event, so it is no DVC stage."""

from typing import Annotated, Any

from prefect import State, flow
from pydantic import Field

from flows import _workspace
from flows._dvc import command, start


def ask_gate(experiment: str | None = None) -> State[Any]:
    """Run the promotion in its own process; a Completed state holds what it decided, in words."""
    out = f"artifacts-{experiment}"
    chosen = ("--params", f"{out}/params.yaml", "--out", out) if experiment else ()
    return command("promote", "qamoe", "promote", *chosen)


def decision(said: str) -> str:
    """promoted, refused or unchanged, from what the stage printed."""
    found = [line.removeprefix("decision: ") for line in said.splitlines() if line.startswith("decision: ")]
    return found[-1] if found else "asked the gate"


@flow(name="promote")
def promote(experiment: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]+$")] | None = None) -> State[Any]:
    """Promote the best trained candidate or say why not; a candidate decided upon before changes nothing.

    experiment: the name of an experiment whose candidate is meant (artifacts-NAME/), instead of the main line's.
    """

    def work() -> State[Any]:
        state = ask_gate(experiment)
        if state.is_completed():
            _workspace.named(f"gate of {experiment or 'the main line'}: {decision(state.result())}")
            _workspace.published("promote", state.result())
        return state

    return _workspace.run("ask the gate", work)


if __name__ == "__main__":
    start(promote)
