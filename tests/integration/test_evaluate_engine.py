# SPDX-License-Identifier: Apache-2.0
"""An evaluation whose answers an engine generates, on a real API server."""

from tests.fakekubelet import FakeKubelet
from tests.integration import manifests
from tests.integration.api import Api
from tests.integration.chain import jobs_of_stage, until_condition
from tests.integration.manifests import profile_name
from tests.integration.operators import Operators
from tools.fakepods import ENGINE_VERSION


def test_a_run_and_an_evaluation_end_with_the_engine_of_their_profile(
    api: Api, namespace: str, operators: Operators, kubelet: FakeKubelet
) -> None:
    """The API server accepts the Jobs, whose rules name init containers."""
    operator = operators.start().wait_active()
    engine = {"serving": {"engine": "VLLM"}, "images": {"engine": "registry.example/vllm:1"}}
    api.patch("ComputeProfile", "", profile_name(namespace), {"spec": engine})
    api.create(manifests.dataset(namespace))
    api.create(manifests.finetunejob(namespace))

    job = until_condition(api, (namespace, "FineTuneJob", "routing"), "Ready", operator)

    assert job["status"]["evaluation"]["answerEngine"] == f"VLLM {ENGINE_VERSION}"
    (evaluate,) = jobs_of_stage(api, namespace, "evaluate")
    pod = evaluate["spec"]["template"]["spec"]
    assert [each["name"] for each in pod["initContainers"]] == ["prompts", "answers"]

    checkpoint = job["status"]["evaluation"]["checkpoint"]
    api.create(manifests.dataset(namespace, "questions"))
    api.create(manifests.evaluation(namespace, "again", checkpoint))
    ended = until_condition(api, (namespace, "Evaluation", "again"), "Ready", operator)
    (entry,) = ended["status"]["evaluations"]
    assert entry["answerEngine"] == f"VLLM {ENGINE_VERSION}"
