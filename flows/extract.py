"""Run the DVC stage `extract` as a flow: corpus -> features."""

import sys

from flows._dvc import stage_flow, start

extract = stage_flow("extract")

if __name__ == "__main__":
    start(extract, sys.argv[1:])
