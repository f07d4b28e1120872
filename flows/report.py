"""Run the DVC stage `report` as a flow: evaluations -> report."""

import sys

from flows._dvc import stage_flow, start

report = stage_flow("report")

if __name__ == "__main__":
    start(report, sys.argv[1:])
