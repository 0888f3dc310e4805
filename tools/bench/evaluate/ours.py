# SPDX-License-Identifier: Apache-2.0
"""python -m tools.bench.evaluate.ours MODEL WORKLOAD ROWS FOLDER: answer rows as the evaluate stage does."""

import json
import sys
import time
from pathlib import Path

from finetune_trainer.evaluate.measured_model import MeasuredModel
from finetune_trainer.evaluate.measurement import batch_rows
from tools.bench.evaluate.workload import CONFIG, examples, load


def main(folder: Path, workload: str, rows: int) -> None:
    """Print the processor time in seconds, and the answer to each row by its number."""
    model, tokenizer = load(folder)
    encoded = examples(workload, rows, tokenizer)
    measured = MeasuredModel(model, tokenizer, max_new_tokens=CONFIG.max_new_tokens, on_token=lambda: None)
    measured.generate(encoded[:1])
    begin = time.process_time()
    answers: dict[int, str] = {}
    left = sorted(encoded, key=measured.size, reverse=True)
    while left:
        batch = left[: batch_rows(measured.size(left[0]), CONFIG.batch_size)]
        generated = measured.generate(batch)
        answers |= {example.row: answer.text for example, answer in zip(batch, generated, strict=True)}
        left = left[len(batch) :]
    seconds = time.process_time() - begin
    print(json.dumps({"seconds": seconds, "answers": [answers[row] for row in sorted(answers)]}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
