# SPDX-License-Identifier: Apache-2.0
"""Protected metrics: the operator asks the API server who a caller is and whether it may read them."""

import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import httpx
import pytest

from finetune_operator.engine.http_server import Certificate, make_certificate
from tests.integration.api import Api, path_of
from tests.integration.operators import Operator, Operators
from tests.waiting import eventually
from tools.cluster.layout import free_port

SERVICE: Final = "finetune-operator-metrics"
ROLES: Final = "/apis/rbac.authorization.k8s.io/v1"


def new_certificate(namespace: str) -> Certificate:
    return make_certificate(SERVICE, namespace, datetime.now(UTC))


class Scrapes:
    """Requests for the metrics of one operator."""

    def __init__(self, operators: Operators, api: Api, namespace: str, folder: str = "") -> None:
        self.port = free_port()
        self._api = api
        self._namespace = namespace
        variables = {"METRICS_PORT": str(self.port), "METRICS_CERTIFICATE": folder}
        self.operator: Operator = operators.start(**variables)
        eventually("the metrics are served", self._listens, describe=lambda: self.operator.log)

    def token(self, account: str) -> str:
        path = f"/api/v1/namespaces/{self._namespace}/serviceaccounts"
        self._api.request("POST", path, {"metadata": {"name": account}}).raise_for_status()
        path = path_of("ServiceAccount", self._namespace, account)
        answer = self._api.request("POST", f"{path}/token", {"spec": {"expirationSeconds": 600}})
        token: str = answer.raise_for_status().json()["status"]["token"]
        return token

    def get(self, token: str | None, context: ssl.SSLContext | None = None) -> httpx.Response:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        verify = httpx.create_ssl_context(verify=False) if context is None else context
        with httpx.Client(verify=verify, trust_env=False, timeout=30) as client:
            host = f"{SERVICE}.{self._namespace}.svc"
            url = f"https://127.0.0.1:{self.port}/metrics"
            return client.get(url, headers=headers, extensions={"sni_hostname": host})

    def _listens(self) -> bool:
        try:
            return self.get(None).status_code == 401
        except httpx.TransportError:
            return False


def allow(api: Api, namespace: str, account: str) -> None:
    """Bind the account to a role as the chart's `finetune-operator-metrics-reader`."""
    name = f"{namespace}-metrics-reader"
    rule = {"nonResourceURLs": ["/metrics"], "verbs": ["get"]}
    role = {"metadata": {"name": name}, "rules": [rule]}
    api.request("POST", f"{ROLES}/clusterroles", role).raise_for_status()
    binding = {
        "metadata": {"name": name},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": account, "namespace": namespace}],
    }
    api.request("POST", f"{ROLES}/clusterrolebindings", binding).raise_for_status()


def test_only_callers_with_the_right_read_the_metrics(api: Api, namespace: str, operators: Operators) -> None:
    scrapes = Scrapes(operators, api, namespace)
    prometheus, stranger = scrapes.token("prometheus"), scrapes.token("stranger")
    allow(api, namespace, "prometheus")
    # A refusal is remembered for a minute, so the right must be in effect first.
    review = {
        "spec": {
            "user": f"system:serviceaccount:{namespace}:prometheus",
            "nonResourceAttributes": {"path": "/metrics", "verb": "get"},
        }
    }
    reviews = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
    eventually("the right", lambda: api.request("POST", reviews, review).json()["status"]["allowed"])

    answer = scrapes.get(prometheus)

    assert answer.status_code == 200, answer.text
    assert "finetune_active" in answer.text
    assert answer.headers["Content-Type"].startswith("text/plain")
    refused = scrapes.get(stranger)
    assert refused.status_code == 403
    assert f"system:serviceaccount:{namespace}:stranger may not get the URL /metrics" in refused.text
    assert scrapes.get("not-a-token").status_code == 401
    assert scrapes.get(None).status_code == 401
    assert scrapes.operator.status_of("healthz") == 200
    assert scrapes.operator.status_of("metrics") == 404


def test_a_certificate_of_the_platform_is_used_and_renewed_in_place(
    api: Api, namespace: str, operators: Operators, tmp_path: Path
) -> None:
    def write(made: Certificate) -> ssl.SSLContext:
        (tmp_path / "tls.crt").write_text(made.certificate)
        (tmp_path / "tls.key").write_text(made.key)
        return ssl.create_default_context(cadata=made.ca)

    first = write(new_certificate(namespace))
    scrapes = Scrapes(operators, api, namespace, str(tmp_path))
    assert scrapes.get(None, first).status_code == 401

    second = write(new_certificate(namespace))

    def renewed() -> bool:
        try:
            return scrapes.get(None, second).status_code == 401
        except httpx.ConnectError:
            return False

    eventually("the renewed certificate", renewed)
    with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
        scrapes.get(None, first)
