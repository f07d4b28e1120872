"""Clean splits -> checkpoints of every model: the DVC stage `train`, alone."""

from flows._dvc import stage_flow, start

train = stage_flow("train")

if __name__ == "__main__":
    start(train)
