# SPDX-License-Identifier: Apache-2.0
"""A trained model ends its answers by itself when it is served."""

import json
import shutil
from pathlib import Path

import pytest

from finetune_trainer.contract.method import LoRA, Method
from finetune_trainer.contract.serving import ServedModel
from finetune_trainer.rows import Row
from tests.trainer.serve.endpoint import serve_config, served_here
from tests.trainer.workbench import ROWS, TEAMS, Workbench
from tools.models import tiny

MAX_TOKENS = 64
PROMPTS = tuple(
    Row.pair(f"{row.messages[0].content} {when}", f"{team}, {number} times {team}")
    for number, (row, when, team) in enumerate(
        (row, when, team)
        for (row, team) in zip(ROWS[:10], TEAMS * 3, strict=False)
        for when in ("today", "again")
    )
)
"""Twenty rows."""


def without_template(folder: Path) -> Path:
    """The tiny model like a base model: no chat template, and no padding token."""
    shutil.copytree(tiny(), folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings.pop("chat_template", None)
    settings["pad_token"] = settings["eos_token"]
    path.write_text(json.dumps(settings))
    return folder


@pytest.mark.parametrize("template", ["the model's own", "none"])
def test_twenty_of_twenty_training_prompts_are_answered_to_an_end(tmp_path: Path, template: str) -> None:
    bench = Workbench(tmp_path)
    base = tiny() if template == "the model's own" else without_template(tmp_path / "base")
    config = bench.train_config(
        base_model=bench.model(base),
        dataset=bench.dataset(PROMPTS),
        rows=len(PROMPTS),
        method=Method(lora=LoRA(r=16, alpha=32, dropout=0)),
        epochs=60,
        learning_rate=1e-2,
        batch_size=10,
        max_sequence_length=128,
        save_every_steps=1000,
    )
    (checkpoint,) = bench.train(config).checkpoints
    models = tmp_path / "models"
    shutil.copytree(base, models / "base")
    shutil.copytree(bench.checkpoint(checkpoint), models / "tuned")
    served = serve_config(models, base_folder="base", models=(ServedModel(name="tuned", folder="tuned"),))

    with served_here(served) as endpoint:
        answers = {
            row.output: endpoint.openai.chat.completions.create(
                model="tuned",
                messages=[{"role": "user", "content": row.messages[0].content}],
                temperature=0,
                max_tokens=MAX_TOKENS,
            ).choices[0]
            for row in PROMPTS
        }

    assert len(answers) == 20
    assert {answer.finish_reason for answer in answers.values()} == {"stop"}
    assert {output: answer.message.content for output, answer in answers.items()} == {
        output: output for output in answers
    }
