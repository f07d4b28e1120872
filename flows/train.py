"""Run the DVC stage `train` as a flow: clean splits -> checkpoints of every model."""

import sys

from flows._dvc import stage_flow, start

train = stage_flow("train")

if __name__ == "__main__":
    start(train, sys.argv[1:])
