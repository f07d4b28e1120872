"""`python -m qamoe`: the qamoe command where its script is not on the path, as under torchrun."""

from qamoe.cli.app import main

if __name__ == "__main__":
    main()
