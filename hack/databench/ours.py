"""python -m hack.databench.ours FILE FOLDER: a whole preparation by our defaults, in a process of its own."""

import json
import sys
from pathlib import Path

from finetune_trainer.data.files import SourceFile
from finetune_trainer.data.options import Recipe
from finetune_trainer.data.preparation import prepare

if __name__ == "__main__":
    prepared = prepare([SourceFile(Path(sys.argv[1]))], Recipe(), Path(sys.argv[2]))
    print(json.dumps({"rows": prepared.kept_rows}))
