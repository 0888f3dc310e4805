# SPDX-License-Identifier: Apache-2.0
"""python -m tools.bench.evaluate.peer MODEL WORKLOAD ROWS FOLDER: answer rows one by one."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from finetune_trainer.evaluate.examples import AnswerBudget
from finetune_trainer.tokens.chat_template import stop_token_ids
from finetune_trainer.tokens.reasoning import AnswerReader
from tools.bench.evaluate.workload import CONFIG, examples, load


def main(folder: Path, workload: str, rows: int) -> None:
    """Print the processor time in seconds, and the answer to each row."""
    model, tokenizer = load(folder)
    model.train(mode=False)
    stops, reader = stop_token_ids(tokenizer, model.generation_config), AnswerReader(tokenizer)

    def answer(prompt: list[int], max_new_tokens: int) -> str:
        output: Any = model.generate(  # type: ignore[operator]
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=max_new_tokens,
            eos_token_id=stops,
            pad_token_id=tokenizer.pad_token_id,
        )
        ids = output[0, len(prompt) :].tolist()
        return reader.content(prompt, [token for token in ids if token not in stops])

    budget = AnswerBudget.of(CONFIG)
    encoded = examples(workload, rows, tokenizer)
    with torch.inference_mode():
        answer(encoded[0].prompt, 4)
        begin = time.process_time()
        answers = [answer(each.prompt, budget.tokens(each.answer_tokens)) for each in encoded]
        seconds = time.process_time() - begin
    print(json.dumps({"seconds": seconds, "answers": answers}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
