"""Run the tests marked `endurance` with their full counts of cases: hours on two cores.

    python tests/endurance.py                # everything
    python tests/endurance.py -k killed      # with any option of pytest

`make test-all` runs a tenth of each count.
"""

import sys

import pytest

if __name__ == "__main__":
    sys.exit(pytest.main(["-m", "endurance", "--full-counts", "-s", *sys.argv[1:]]))
