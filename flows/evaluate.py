"""Run the DVC stage `evaluate` as a flow: checkpoints -> predictions and cells."""

import sys

from flows._dvc import stage_flow, start

evaluate = stage_flow("evaluate")

if __name__ == "__main__":
    start(evaluate, sys.argv[1:])
