"""Candidate -> champion, where the gate lets it through: an event, so it is no DVC stage."""

from typing import Any

from prefect import State, flow

from flows._dvc import command, start


def ask_gate() -> State[Any]:
    """Run the promotion in its own process; a Completed state holds what it decided, in words."""
    return command("promote", "qamoe.stages.promote")


@flow(name="promote")
def promote() -> State[Any]:
    """Promote the best trained candidate or say why not; a candidate decided upon before changes nothing."""
    return ask_gate()


if __name__ == "__main__":
    start(promote)
