"""Features -> clean splits: the DVC stage `preprocess`, alone."""

from flows._dvc import stage_flow, start

preprocess = stage_flow("preprocess")

if __name__ == "__main__":
    start(preprocess)
