# SPDX-License-Identifier: Apache-2.0
"""A training pod that reports its progress."""

import ssl
import time
from typing import Any

import httpx

from finetune_trainer.contract.configs import CONFIG_ADAPTER, StageConfig
from finetune_trainer.contract.environment import CONFIG_ENV, REPORT_AUDIENCE, REPORT_PATH
from finetune_trainer.contract.results import Progress, Report
from finetune_trainer.contract.vocabulary import Stage
from tests.integration.api import Api, Object, path_of
from tests.integration.operators import Operator
from tests.waiting import eventually


class TrainingPod:
    """A running pod of the train stage, or of another one, with its config; of this run, or of any."""

    def __init__(
        self, api: Api, namespace: str, operator: Operator, stage: Stage = "train", run: str | None = None
    ) -> None:
        self._api = api
        self._run = run
        self._stage = stage
        self._namespace = namespace
        self._operator = operator
        self.pod = eventually(f"a {stage} pod runs", self._find, 60, lambda: operator.log[-4000:])
        variables = {each["name"]: each.get("value") for each in self.pod["spec"]["containers"][0]["env"]}
        config = CONFIG_ADAPTER.validate_json(variables[CONFIG_ENV])
        assert isinstance(config, StageConfig)
        assert config.report is not None, "the pod's config has no report target"
        self.config = config
        self.target = config.report
        self.token = self.make_token()

    def _find(self) -> Object | None:
        pods = self._api.list("Pod", self._namespace)
        for pod in pods:
            labels = pod["metadata"]["labels"]
            is_ours = self._run in {None, labels.get("finetune.dev/owner-name")}
            if is_ours and labels.get("finetune.dev/stage") == self._stage and _is_running(pod):
                return pod
        return None

    def make_token(self, audience: str = REPORT_AUDIENCE, *, bound: bool = True) -> str:
        """A token like the one that the kubelet projects into the pod."""
        metadata = self.pod["metadata"]
        reference = {"apiVersion": "v1", "kind": "Pod", "name": metadata["name"], "uid": metadata["uid"]}
        spec: Object = {"audiences": [audience], "expirationSeconds": 600}
        account = path_of("ServiceAccount", self._namespace, self.pod["spec"]["serviceAccountName"])
        body = {"spec": spec | ({"boundObjectRef": reference} if bound else {})}
        answer = self._api.request("POST", f"{account}/token", body).raise_for_status()
        token: str = answer.json()["status"]["token"]
        return token

    def report(self, step: int, total_steps: int = 100, **more: Any) -> Report:
        progress = Progress(step=step, total_steps=total_steps, loss=1.5)
        sequence = time.time_ns() // 1_000_000
        fields: dict[str, Any] = {
            "owner": self.config.owner,
            "stage": self._stage,
            "sequence": sequence,
            "progress": progress,
            **more,
        }
        return Report(**fields)

    def post(self, body: str, token: str | None = None) -> httpx.Response:
        """POST as the pod does, but to this machine's address instead of the Service's."""
        context = ssl.create_default_context(cadata=self.target.ca_pem)
        url = f"https://127.0.0.1:{self._operator.report_port}{REPORT_PATH}"
        with httpx.Client(verify=context, trust_env=False, timeout=30) as client:
            return client.post(
                url,
                content=body,
                headers={"Authorization": f"Bearer {self.token if token is None else token}"},
                extensions={"sni_hostname": httpx.URL(self.target.url).host},
            )


def _is_running(pod: Object) -> bool:
    return bool(pod["status"]["phase"] == "Running")
