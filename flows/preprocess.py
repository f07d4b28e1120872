"""Run the DVC stage `preprocess` as a flow: features -> clean splits."""

import sys

from flows._dvc import stage_flow, start

preprocess = stage_flow("preprocess")

if __name__ == "__main__":
    start(preprocess, sys.argv[1:])
