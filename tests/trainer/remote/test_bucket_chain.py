# SPDX-License-Identifier: Apache-2.0
"""Every stage with a store in a bucket, each in its own pod."""

import json
import shutil
import signal
import threading
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from finetune_trainer.contract.configs import PreflightConfig, PrepareConfig, SourceConfig, TrainConfig
from finetune_trainer.contract.dataset import Columns, Split
from finetune_trainer.contract.hyperparameters import RequestedHyperparameters
from finetune_trainer.contract.method import LoRA, Method
from finetune_trainer.contract.references import ArtifactRef, StoreConfig
from finetune_trainer.contract.results import Progress, TrainResult
from finetune_trainer.contract.serving import FetchConfig, FetchItem
from finetune_trainer.contract.vocabulary import ExitCode
from finetune_trainer.preflight import stage as preflight_stage
from finetune_trainer.runtime.termination import Preempted
from tests.s3server import S3Server
from tests.trainer.processes import PAUSE_SECONDS, TIMEOUT_SECONDS, run, start
from tests.trainer.workbench import OWNER, ROWS, RUN, Sheet, Workbench, elsewhere
from tests.waiting import eventually
from tools.models import tiny


@dataclass(frozen=True)
class Pod(Workbench):
    """A workbench whose store is in a bucket; `root` is the pod's own volume."""

    server: S3Server
    bucket: str

    @property
    def store_config(self) -> StoreConfig:
        return self.server.store(self.root / "scratch", f"s3://{self.bucket}/team")

    @property
    def objects(self) -> Path:
        return self.server.root / self.bucket / "team"

    def next(self) -> "Pod":
        """Another pod with the same bucket and an empty volume."""
        root = self.root.with_name(uuid.uuid4().hex)
        root.mkdir()
        return Pod(root, self.server, self.bucket)

    def complete_states(self) -> list[str]:
        return sorted(path.parent.name for path in self.run_objects.glob("state/*/manifest.json"))

    @property
    def run_objects(self) -> Path:
        return self.objects / "runs" / RUN / "train"


@pytest.fixture
def pod(s3: S3Server, tmp_path: Path) -> Pod:
    bucket = f"b-{uuid.uuid4().hex[:12]}"
    s3.bucket(bucket)
    root = tmp_path / "pod"
    root.mkdir()
    return Pod(root, s3, bucket)


def config_for(bench: Workbench, **settings: Any) -> TrainConfig:
    dataset = bench.dataset(ROWS, ROWS[:5])
    return bench.train_config(
        dataset=dataset, method=Method(lora=LoRA(r=4, alpha=8, dropout=0.1)), **settings
    )


def in_pod(pod: Pod, config: TrainConfig) -> TrainConfig:
    """Return the config of another pod of the same run."""
    return config.model_copy(update={"store": pod.store_config})


def on_a_volume(pod: Pod, **settings: Any) -> TrainResult:
    """Return the result of the same run without interruption, with a mounted store."""
    bench = elsewhere(Workbench(pod.root.parent), f"mounted-{uuid.uuid4().hex}")
    return bench.train(config_for(bench, **settings))


def test_the_whole_chain_goes_from_bucket_to_bucket(pod: Pod, tmp_path: Path) -> None:
    inputs, secret = pod.server.bucket(f"i-{uuid.uuid4().hex[:12]}"), pod.store_config.credentials
    rows = [{"q": f"question {number}", "a": f"team {number % 3}"} for number in range(40)]
    (inputs / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shutil.copytree(tiny(), inputs / "tiny")

    def common() -> dict[str, Any]:
        """Return the store config of the next pod, which has a new volume."""
        return {"owner": OWNER, "run": RUN, "store": pod.next().store_config}

    prepared = run(
        PrepareConfig(
            **common(),
            sources=(
                SourceConfig(
                    uri=f"s3://{inputs.name}/rows.jsonl",
                    credentials=secret,
                    columns=Columns(prompt="q", completion="a"),
                ),
            ),
            split=Split(validation=0.2, test=0.2),
        )
    ).result.prepare
    assert prepared is not None
    assert prepared.dataset is not None
    preflight = PreflightConfig(
        **common(),
        base_model_uri=f"s3://{inputs.name}/tiny",
        base_model_credentials=secret,
        dataset=prepared.dataset,
        hyperparameters=RequestedHyperparameters(epochs=1),
    )
    preflighted = preflight_stage.run(preflight, pod.next().context())
    trained = run(
        TrainConfig(
            **common(),
            base_model=preflighted.base_model,
            dataset=prepared.dataset,
            hyperparameters=preflighted.hyperparameters,
        )
    ).result.train
    assert trained is not None
    checkpoint = trained.checkpoints[-1]
    evaluated = pod.next().evaluate(preflighted.base_model, prepared.dataset, checkpoint, max_new_tokens=4)
    fetched = run(
        FetchConfig(
            owner=OWNER,
            store=pod.next().store_config,
            items=(
                FetchItem(artifact=ArtifactRef(kind="models", digest=preflighted.base_model), folder="base"),
                FetchItem(
                    artifact=ArtifactRef(kind="checkpoints", digest=checkpoint.digest), folder="tickets"
                ),
            ),
            destination=str(tmp_path / "models"),
        )
    )

    assert fetched.code == ExitCode.OK, fetched.logs
    assert {score.metric for score in evaluated.scores} == {"exact_match", "loss"}
    model = "model.safetensors"
    assert (tmp_path / "models" / "base" / model).read_bytes() == (tiny() / model).read_bytes()
    assert (tmp_path / "models" / "tickets" / "adapter_model.safetensors").exists()
    assert sorted(path.name for path in pod.objects.iterdir() if not path.name.startswith(".")) == [
        "checkpoints",
        "datasets",
        "models",
        "runs",
    ]


def test_a_run_that_is_killed_goes_on_in_another_pod_and_ends_with_the_same_weights(pod: Pod) -> None:
    config = config_for(pod, epochs=20)
    with start(in_pod(pod.next(), config)) as process:
        eventually(
            "a state is in the bucket",
            lambda: "step-4" in pod.complete_states(),
            TIMEOUT_SECONDS,
            pause=PAUSE_SECONDS,
        )
        assert process.kill() == -signal.SIGKILL
    other = pod.next()

    result = other.train(in_pod(other, config))

    assert result == on_a_volume(pod, epochs=20).model_copy(update={"restarts": 1})


def test_a_signal_ends_the_pod_when_its_state_is_in_the_bucket(pod: Pod) -> None:
    config = config_for(pod, epochs=20, save_every_steps=100)
    with start(in_pod(pod.next(), config)) as process:
        process.read_until("step 1 of 60")
        process.send_signal(signal.SIGTERM)
        ended = process.finish()

    assert ended.code == ExitCode.PREEMPTED_SAVED, ended.logs
    (state,) = pod.complete_states()
    following = int(state.removeprefix("step-")) + 1
    other, sheet = pod.next(), Sheet(stop_at=frozenset({following}))
    with pytest.raises(Preempted):
        other.train(in_pod(other, config), sheet)
    assert [progress.step for progress in sheet.seen] == [following]


def test_the_newest_state_that_is_whole_wins(pod: Pod, caplog: pytest.LogCaptureFixture) -> None:
    config = config_for(pod, save_every_steps=1)
    with pytest.raises(Preempted):
        pod.train(config, Sheet(stop_at=frozenset({4})))
    (pod.run_objects / "state" / "step-4" / "manifest.json").unlink()
    other, sheet = pod.next(), Sheet()

    result = other.train(in_pod(other, config), sheet)

    assert sheet.seen[0].step == 4
    assert "step-4 is ignored" in caplog.text
    assert result.checkpoints == on_a_volume(pod, save_every_steps=1).checkpoints
    assert pod.complete_states() == ["step-5", "step-6"]
    volume = other.root / "scratch" / "runs" / RUN / "train" / "state"
    assert sorted(path.name for path in volume.iterdir()) == ["step-5", "step-6"]


def test_a_store_that_is_away_for_a_while_costs_a_run_nothing_but_time(tmp_path: Path) -> None:
    """Training continues while an upload is retried."""
    with S3Server(tmp_path / "s3") as server:
        server.bucket("artifacts")
        (tmp_path / "pod").mkdir()
        pod = Pod(tmp_path / "pod", server, "artifacts")
        config = config_for(pod, epochs=4)
        steps_when_away: list[int] = []

        class Outage(Sheet):
            """Stop the server from the report of step 3 until two steps later."""

            def progress(self, progress: Progress) -> None:
                super().progress(progress)
                if progress.step == 3:
                    server.stop()
                elif progress.step == 5:
                    steps_when_away.append(progress.step)
                    server.start()

        result = pod.train(config, Outage())

    assert steps_when_away == [5]
    assert result == on_a_volume(pod, epochs=4)


def test_a_signal_while_the_store_is_away_saves_when_it_is_back(tmp_path: Path) -> None:
    with S3Server(tmp_path / "s3") as server:
        server.bucket("artifacts")
        (tmp_path / "pod").mkdir()
        pod = Pod(tmp_path / "pod", server, "artifacts")
        back = threading.Timer(1, server.start)

        class Eviction(Sheet):
            """Drain the node during an outage."""

            def progress(self, progress: Progress) -> None:
                super().progress(progress)
                server.stop()
                back.start()
                self.stop.set()

        with pytest.raises(Preempted):
            pod.train(config_for(pod, save_every_steps=100), Eviction())

        assert pod.complete_states() == ["step-1"]


@pytest.mark.full
def test_processes_of_one_pod_save_into_the_bucket_and_go_on_from_it(pod: Pod) -> None:
    """Each process reads its files into its own folder."""
    settings: dict[str, Any] = {"epochs": 10, "max_batch_rows": 2, "processes": 2}
    config = config_for(pod, **settings).model_copy(update={"devices": 2})
    with start(config) as process:
        process.read_until("saved the state after step 4")
        process.send_signal(signal.SIGTERM)
        stopped = process.finish()
    ended = run(in_pod(pod.next(), config))

    assert stopped.code == ExitCode.PREEMPTED_SAVED, stopped.logs
    assert ended.code == ExitCode.OK, ended.logs
    trained = ended.result.train
    assert trained is not None
    assert (trained.steps, trained.restarts) == (config.hyperparameters.total_steps, 1)
