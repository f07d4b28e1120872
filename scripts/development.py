"""The spectrum on what an experiment may look at: validation and gate split together, the test split being shut.

`python scripts/development.py [--params FILE] [--out DIR] [MODEL ...]` after `python -m qamoe.pipeline.train` makes
DIR/development, an artifacts folder whose test split is those two, and evaluates the models there. Then
`qamoe compare A B --out DIR/development` and `qamoe table --out DIR/development` read it. Defaults that are chosen so
have seen the gate split: a corpus whose gate is to judge them wants another one, or clips that came later.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa

from qamoe.config import params as parameters
from qamoe.config import settings
from qamoe.data.arrow_store import BATCH_ROWS
from qamoe.errors import UserError
from qamoe.files import atomic_write

SPLITS = ("valid", "gate")


def main() -> None:
    """Make the folder and evaluate. Raises UserError where the stages before have not run."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--params", type=Path, default=Path("params.yaml"))
    parser.add_argument("--out", type=Path, default=Path("artifacts"))
    parser.add_argument("models", nargs="*")
    asked = parser.parse_args()
    settings.go_offline()
    params = parameters.load(asked.params)
    folder = prepared(asked.out)
    unrecorded = {**os.environ, "QAMOE_TRACKING": "off"}  # the records say what the test split said
    command = [sys.executable, "-m", "qamoe.pipeline.evaluate", "--params", str(asked.params), "--out", str(folder)]
    for model in asked.models or params.seeds:
        if subprocess.run([*command, "--model", model], env=unrecorded, check=False).returncode:
            raise UserError(f"The evaluation of {model} in {folder} ended with an error.")


def prepared(out: Path) -> Path:
    """DIR/development, its splits new and its models those of `out`."""
    source = out / "preprocess"
    missing = [str(path) for path in (source / f"{split}.arrow" for split in SPLITS) if not path.is_file()]
    if missing:
        raise UserError(f"There is no {' and no '.join(missing)}; run the stage preprocess first.")
    folder = out / "development"
    (folder / "preprocess").mkdir(parents=True, exist_ok=True)
    for name, target in (("train", out / "train"), ("preprocess/stats.json", source / "stats.json")):
        link = folder / name
        link.unlink(missing_ok=True)
        link.symlink_to(target.resolve())
    tables = [pa.ipc.open_file(pa.memory_map(str(source / f"{split}.arrow"))).read_all() for split in SPLITS]
    about = tables[0].schema.metadata
    both = pa.concat_tables([table.replace_schema_metadata(about) for table in tables]).combine_chunks()
    with (
        atomic_write(folder / "preprocess" / "test.arrow") as aside,
        pa.OSFile(str(aside), "wb") as file,
        pa.ipc.new_file(file, both.schema) as writer,
    ):
        writer.write_table(both, max_chunksize=BATCH_ROWS)  # a row is found by its batch
    return folder


if __name__ == "__main__":
    try:
        main()
    except UserError as refusal:
        sys.exit(f"development: {refusal}")
