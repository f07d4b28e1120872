"""Run the DVC stage `evaluate` as a flow: checkpoints -> predictions and cells."""

from flows._dvc import stage_flow, start

evaluate = stage_flow("evaluate")

if __name__ == "__main__":
    start(evaluate)
