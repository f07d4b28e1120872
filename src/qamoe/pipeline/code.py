"""Write the digests of a stage's source files to artifacts/code/<stage>.json, on which the stage depends.

DVC hashes bytes, so a stage that depended on its source files would be stale after every change of a comment. After
such a change, DVC runs only this stage, which takes less than a second and writes the same digests as before.
"""

import argparse
import json
from pathlib import Path

from qamoe.errors import exit_on_user_error
from qamoe.files import write_text
from qamoe.pipeline import source_dependencies


def run(stage: str, out: Path) -> None:
    """Write the digest of each source file that a stage depends on."""
    digests = source_dependencies.file_digests(f"qamoe.pipeline.{stage}")
    write_text(out / "code" / f"{stage}.json", json.dumps(digests, indent=1) + "\n")


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog="python -m qamoe.pipeline.code")
    parser.add_argument("stage", choices=source_dependencies.STAGES)
    parser.add_argument("--out", type=Path, default=Path("artifacts"))
    arguments = parser.parse_args()
    with exit_on_user_error("code"):
        run(arguments.stage, arguments.out)


if __name__ == "__main__":
    main()
