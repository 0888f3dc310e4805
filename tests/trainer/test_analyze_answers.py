# SPDX-License-Identifier: Apache-2.0
"""Gates on answers: rows are sent to real servers of both revisions, and each model is scored alone."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from finetune_trainer.analyze import stage
from finetune_trainer.analyze.gates import Answers, decide_score
from finetune_trainer.analyze.pod_metrics import served_digests
from finetune_trainer.analyze.probing import ProbeAnswers, probe_requests
from finetune_trainer.contract.analysis import AnalysisGateBound, AnalyzeResult
from finetune_trainer.contract.configs import AnalysisProbe, AnalyzeConfig, ProbedModel
from finetune_trainer.rows import Message, Row
from finetune_trainer.store import open_store
from tests.trainer.test_analyze import DIGEST, ERRORS, OWNER, VLLM_SCRAPE, Clock, Text, pod
from tests.trainer.workbench import Workbench

LABELS = ("billing", "shipping", "account")
ROWS = tuple(Row.pair(f"order {number}?", LABELS[number % 3]) for number in range(60))
NO_WORSE = AnalysisGateBound(metric="exact_match", min=0.8, max_decrease=0.05)
SHORT = {"duration_seconds": 60, "max_duration_seconds": 240}


def question(body: Any) -> int:
    return int(body["messages"][-1]["content"].split()[1].rstrip("?"))


def right(body: Any) -> str:
    return f" {LABELS[question(body) % 3]}\n"


def shuffled(body: Any) -> str:
    """A third of the answers is right, as after training on shuffled labels."""
    return LABELS[(question(body) * 7 + question(body) // 3) % 3]


def analyze(
    root: Path,
    new: Text,
    stable: Text | None,
    *gates: AnalysisGateBound,
    models: Sequence[ProbedModel] | None = None,
    new_digest: str = DIGEST,
    asked: tuple[list[Any], list[Any]] | None = None,
    requests: int = 60,
    min_rows: int = 20,
    **settings: Any,
) -> AnalyzeResult:
    root.mkdir(exist_ok=True)
    bench = Workbench(root)
    names = models or (ProbedModel(name="tuned"),)
    dataset = bench.dataset(ROWS[:1], test=ROWS)
    of_new, of_stable = asked or ([], [])
    with ExitStack() as stack:
        pods = [stack.enter_context(pod(lambda _: None, asked=of_new, text=new, digest=new_digest))]
        stable_pods = []
        if stable is not None:
            stable_pods = [stack.enter_context(pod(lambda _: None, asked=of_stable, text=stable))]
        probe = AnalysisProbe(
            models=tuple(each.model_copy(update={"dataset": each.dataset or dataset}) for each in names),
            pods=tuple(url.replace("/metrics", "/v1") for url in pods),
            stable_pods=tuple(url.replace("/metrics", "/v1") for url in stable_pods),
            digests=(DIGEST,),
            stable_digests=(DIGEST,),
            requests=requests,
            min_rows=min_rows,
        )
        config = AnalyzeConfig(
            owner=OWNER,
            run="e1",
            store=bench.store_config,
            pods=tuple(pods),
            stable_pods=tuple(stable_pods),
            gates=gates,
            probe=probe,
            **{**SHORT, "min_requests": 20} | settings,
        )
        return stage.run(config, Clock().measuring())


def test_a_model_like_the_stable_one_passes_after_the_duration(tmp_path: Path) -> None:
    result = analyze(tmp_path, right, right, NO_WORSE)
    (figure,) = result.figures
    assert (result.verdict, result.seconds) == ("Pass", 60)
    assert (figure.value, figure.stable, figure.model, figure.rows) == (1, 1, "tuned", 60)
    assert (result.requests, result.stable_requests) == (60, 60), "they count like requests of users"


def test_a_model_trained_on_shuffled_labels_fails_after_a_quarter_of_the_rows(tmp_path: Path) -> None:
    asked: tuple[list[Any], list[Any]] = ([], [])
    result = analyze(tmp_path, shuffled, right, NO_WORSE, requests=80, asked=asked)
    (figure,) = result.figures
    assert (result.verdict, result.seconds, result.requests) == ("Fail", 0, 30)
    assert len(asked[0]) == len(asked[1]) == 30, "15 rows are fewer than minRows"
    assert figure.rows == 30
    assert figure.value is not None
    assert figure.high is not None
    assert figure.value < figure.high < 0.8
    assert figure.stable == 1
    assert [body["messages"] for _, _, body in asked[0]] == [body["messages"] for _, _, body in asked[1]]


def test_one_bad_model_of_ten_decides(tmp_path: Path) -> None:
    models = [ProbedModel(name=f"m{number}") for number in range(10)]

    def one_bad(body: Any) -> str:
        return shuffled(body) if body["model"] == "m7" else right(body)

    result = analyze(tmp_path, one_bad, right, NO_WORSE, models=models, requests=300, min_rows=10)
    (figure,) = result.figures
    assert (result.verdict, figure.model) == ("Fail", "m7")


def test_a_small_loss_is_inconclusive_and_asks_a_person(tmp_path: Path) -> None:
    def a_little_worse(body: Any) -> str:
        return right(body) if question(body) % 15 else "no"

    result = analyze(
        tmp_path, a_little_worse, right, AnalysisGateBound(metric="exact_match", max_decrease=0.05)
    )
    (figure,) = result.figures
    assert (result.verdict, figure.value, figure.stable) == ("Inconclusive", 0.9333, 1)
    assert result.seconds == 240


def test_a_long_answer_is_compared_by_its_words(tmp_path: Path) -> None:
    gate = AnalysisGateBound(metric="rouge_l", max_decrease=0.1)
    assert analyze(tmp_path / "bad", lambda _: "no idea", right, gate).verdict == "Fail"
    assert analyze(tmp_path / "good", right, right, gate).verdict == "Pass"


def test_a_model_that_is_new_is_measured_without_a_comparison(tmp_path: Path) -> None:
    models = [ProbedModel(name="added", is_new=True)]
    gate = AnalysisGateBound(metric="exact_match", max_decrease=0.05)
    assert analyze(tmp_path / "1", right, lambda _: None, gate, models=models).verdict == "Pass"
    assert analyze(tmp_path / "2", shuffled, lambda _: None, NO_WORSE, models=models).verdict == "Fail"


def test_rows_that_a_revision_does_not_answer_do_not_count(tmp_path: Path) -> None:
    """Errors are a matter of the gate on errors."""
    result = analyze(tmp_path, lambda _: None, right, NO_WORSE)
    assert (result.verdict, result.figures[0].rows) == ("Inconclusive", 0)
    assert "503" in result.problem
    nothing_to_compare = analyze(tmp_path / "2", right, lambda _: None, NO_WORSE)
    assert nothing_to_compare.verdict == "Inconclusive"


def test_fewer_rows_than_the_min_decide_nothing(tmp_path: Path) -> None:
    result = analyze(tmp_path, shuffled, right, NO_WORSE, min_rows=61)
    assert (result.verdict, result.figures[0].rows) == ("Inconclusive", 60)


def test_rows_of_no_dataset_decide_nothing() -> None:
    models = (ProbedModel(name="a", dataset=DIGEST), ProbedModel(name="pinned"))
    rows = [ProbeAnswers("a", frozenset({"x"}), "x", "x") for _ in range(50)]
    figure = decide_score(NO_WORSE, Answers(models, rows, 20, 1, is_complete=True))
    assert (figure.verdict, figure.model) == ("Inconclusive", "pinned")


def test_a_gate_on_answers_and_one_on_errors_must_both_pass(tmp_path: Path) -> None:
    assert analyze(tmp_path / "1", right, right, NO_WORSE, ERRORS, requests=300).verdict == "Pass"
    few = analyze(tmp_path / "2", right, right, NO_WORSE, ERRORS, min_requests=100)
    assert [figure.verdict for figure in few.figures] == ["Pass", "Inconclusive"]
    assert few.requests == 60, "the same rows are not sent twice"


# Addresses


def test_an_address_of_another_pod_gets_neither_rows_nor_keys(tmp_path: Path) -> None:
    asked: tuple[list[Any], list[Any]] = ([], [])
    other = f"sha256:{'b' * 64}"
    result = analyze(tmp_path, right, right, NO_WORSE, new_digest=other, asked=asked)
    assert (result.verdict, asked[0]) == ("Inconclusive", [])
    assert "does not show the models of the revision" in result.problem
    assert analyze(tmp_path / "2", right, right, NO_WORSE, new_digest="").figures[0].rows == 0


def test_pods_of_vllm_show_the_digests_of_the_base_model_and_of_an_adapter() -> None:
    assert len(served_digests(VLLM_SCRAPE.read_text())) == 2


# Rows


def test_rows_are_sent_as_clients_send_them(tmp_path: Path) -> None:
    bench = Workbench(tmp_path)
    turns = (Message("user", "hi"), Message("assistant", "hello", learned=False), Message("user", "bill?"))
    thought = Row((*turns, Message("assistant", "<think>\nhm\n</think>\n\nbilling")))
    wrong = Row((Message("user", "bill?"), Message("assistant", "no")), "KTO", label=False)
    digest = bench.dataset(ROWS[:1], test=[thought, wrong])
    model = ProbedModel(name="tuned", dataset=digest, reasoning_parser="qwen3")
    probe = AnalysisProbe(requests=3, models=(model,), pods=())
    found = probe_requests(probe, open_store(bench.store_config))
    (request,) = found.rows
    assert request.accepted == {"billing"}
    assert request.body["messages"][1] == {"role": "assistant", "content": "hello"}
    assert request.body["max_tokens"] == len("<think>\nhm\n</think>\n\nbilling") + 16
    assert found.repeated == (request, request)


# Statistics


def test_models_that_just_meet_the_bound_rarely_fail_at_any_look() -> None:
    """At most 5 % of 200, so at most 10 are expected: more than 18 have a probability of 0.4 %."""
    gate = AnalysisGateBound(metric="exact_match", max_decrease=0.1)
    generator, failed = np.random.default_rng(3), 0
    model, text = (ProbedModel(name="a", dataset=DIGEST),), {True: "x", False: "y"}
    for _ in range(200):
        stable, changed = generator.random(100) < 0.9, generator.random(100)
        # Of all rows, 15 % become wrong and 5 % become right.
        new = np.where(stable, changed > 0.15 / 0.9, changed < 0.5)
        rows = [
            ProbeAnswers("a", frozenset({"x"}), text[bool(one)], text[bool(other)])
            for one, other in zip(new, stable, strict=True)
        ]
        looks = (Answers(model, rows[:size], 20, 3, is_complete=size == 100) for size in (25, 50, 100))
        failed += any(decide_score(gate, each).verdict == "Fail" for each in looks)
    assert failed <= 18
