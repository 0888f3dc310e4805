# SPDX-License-Identifier: Apache-2.0
"""python -m tools.bench.data.ours FILE FOLDER: prepare rows with the defaults of a new Dataset."""

import json
import sys
from pathlib import Path

from finetune_trainer.data.files import SourceFile
from finetune_trainer.data.pipeline import prepare
from finetune_trainer.data.recipe import Recipe

if __name__ == "__main__":
    recipe = Recipe()
    prepared = prepare([SourceFile(Path(sys.argv[1]))], recipe, Path(sys.argv[2]))
    print(json.dumps({"rows": prepared.kept_rows}))
