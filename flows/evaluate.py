"""Checkpoints -> predictions and cells along the spectrum: the DVC stage `evaluate`, alone."""

from flows._dvc import stage_flow, start

evaluate = stage_flow("evaluate")

if __name__ == "__main__":
    start(evaluate)
