"""Run the DVC stage `extract` as a flow: corpus -> features."""

from flows._dvc import stage_flow, start

extract = stage_flow("extract")

if __name__ == "__main__":
    start(extract)
