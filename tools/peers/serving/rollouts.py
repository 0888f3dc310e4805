# SPDX-License-Identifier: Apache-2.0
"""python -m tools.peers.serving.rollouts ROUNDS: how long a rollout takes by each strategy.

Runs in the namespaces of tools/cluster/linux_namespaces.py, with a cluster that it starts and stops.
"""

import json
import sys
from datetime import UTC, datetime
from typing import Final

from finetune_client.backend import Object
from tools.cluster import TestCluster
from tools.demo.admin_access import AdminAccess
from tools.demo.install import images, install
from tools.peers.serving.bench_namespace import BenchNamespace, serving

STRATEGIES: Final[dict[str, Object]] = {
    "RollingUpdate": {"type": "RollingUpdate"},
    "Recreate": {"type": "Recreate"},
    "BlueGreen, promoted when it is ready": {"type": "BlueGreen", "blueGreen": {"autoPromotionSeconds": 0}},
    "Canary, one step without a pause": {
        "type": "Canary",
        "canary": {"steps": [{"setWeight": 50}], "allowCoarseWeights": True},
    },
}
NONE: Final = dict.fromkeys(("blueGreen", "canary"))
PROFILE: Final = {
    "serving": {"engine": "Transformers"},
    "pods": [{"stages": ["serve"], "resources": {"cpu": "100m", "memory": "3Gi"}}],
}


def main(rounds: int) -> None:
    """Print the seconds of each rollout by strategy as JSON on the last line."""
    with TestCluster():
        access = AdminAccess.from_environment()
        install(access, images())
        namespace = BenchNamespace(access)
        namespace.serve(PROFILE, {"serving": serving()})
        found = {
            name: [_roll(namespace, strategy) for _ in range(rounds)] for name, strategy in STRATEGIES.items()
        }
    print(json.dumps(found))


def _roll(namespace: BenchNamespace, strategy: Object) -> float:
    """Start a new revision of the same model. Returns the seconds until the endpoint is ready."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return namespace.change({"restartedAt": now, "strategy": {**NONE, **strategy}})


if __name__ == "__main__":
    main(int(sys.argv[1]))
