# SPDX-License-Identifier: Apache-2.0
"""Steps that use what was trained: evaluation and the built-in engine."""

import json
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import Any, Final

from finetune_trainer.contract.environment import CONFIG_ENV
from finetune_trainer.contract.method import Method
from finetune_trainer.contract.references import ArtifactRef
from finetune_trainer.contract.serving import ServeConfig, ServedModel
from tests.gpu.errors import GPUCheckFailed
from tests.gpu.scene import OWNER, STAGE_MODULE, GPUFigures, Scene

PORT: Final = 18_000
READY_SECONDS: Final = 240
ANSWER_TOKENS: Final = 64


def evaluate_and_serve(scene: Scene) -> GPUFigures:
    """Train an adapter, evaluate it beside its base model, and ask both of an endpoint."""
    method = Method(type="LoRA")
    data = scene.dataset(method, rows=80, tokens=192, held_out=16)
    model = scene.model(scene.size("0.7B"))
    found = scene.preflight("serve", model, data, method, epochs=1, batch_size=8)
    trained = scene.train(scene.train_config("serve", data, method, found))
    begin = time.perf_counter()
    result = scene.run(scene.evaluate_config("serve", data, found, trained)).evaluate
    if result is None:
        raise GPUCheckFailed("evaluate ended without its result")
    scores = {(score.metric, score.subject): score.value for score in result.scores}
    figures: GPUFigures = {
        "evaluation, s": round(time.perf_counter() - begin, 1),
        **{f"{metric} of {subject}": round(value, 3) for (metric, subject), value in scores.items()},
    }
    models = scene.folder / "served"
    shutil.copytree(model, models / "base", dirs_exist_ok=True)
    best = next(each for each in trained.checkpoints if each.best)
    checkpoint = scene.store.artifact(ArtifactRef(kind="checkpoints", digest=best.digest))
    shutil.copytree(checkpoint, models / "tuned", dirs_exist_ok=True)
    config = ServeConfig(
        owner=OWNER,
        base_folder="base",
        models=(ServedModel(name="tuned", folder="tuned"),),
        models_path=str(models),
        port=PORT,
    )
    return {**figures, **_asked(scene, config)}


def _asked(scene: Scene, config: ServeConfig) -> GPUFigures:
    process = subprocess.Popen(
        [sys.executable, "-m", STAGE_MODULE], env={**scene.environment, CONFIG_ENV: config.to_json()}
    )
    try:
        begin = time.perf_counter()
        _wait_until_ready(process)
        ready = time.perf_counter() - begin
        answers = {name: _answer(name) for name in ("base", "tuned")}
        if answers["base"] == answers["tuned"]:
            raise GPUCheckFailed("the adapter answers exactly like its base model")
        begin = time.perf_counter()
        _answer("tuned")
        return {
            "start of the endpoint, s": round(ready, 1),
            "tokens/s of one request": round(ANSWER_TOKENS / (time.perf_counter() - begin), 1),
        }
    finally:
        process.terminate()
        process.wait()


def _wait_until_ready(process: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise GPUCheckFailed(f"the engine ended with exit code {process.returncode} before it was ready")
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{PORT}/health", timeout=5)
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
        else:
            return
    raise GPUCheckFailed(f"the engine is not ready after {READY_SECONDS} s")


def _answer(model: str) -> str:
    body = {"model": model, "prompt": "The license", "max_tokens": ANSWER_TOKENS, "temperature": 0}
    request = urllib.request.Request(
        f"http://127.0.0.1:{PORT}/v1/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as response:  # noqa: S310
        answer: dict[str, Any] = json.loads(response.read())
    text: str = answer["choices"][0]["text"]
    return text
