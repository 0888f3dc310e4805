# SPDX-License-Identifier: Apache-2.0
"""Install the operator with its Helm chart."""

from pathlib import Path
from typing import Any, Final

import yaml

from finetune_operator.api.meta import GROUP
from tools.bootstrap.uv import ROOT
from tools.demo.access import Access
from tools.demo.errors import DemoError
from tools.images.build import build
from tools.images.tags import References, Variant

RELEASE: Final = "finetune-operator"
SYSTEM: Final = "finetune-system"
CRD: Final = f"finetunejobs.{GROUP}"
CHART: Final = ROOT / "charts" / "finetune-operator"
DEFINITIONS: Final = "finetune-operator-crds"
"""Release and chart of the CustomResourceDefinitions."""

PROFILE: Final[dict[str, Any]] = {
    # Without an accelerator a device is a CPU core; the requests fit a machine with two cores.
    "accelerator": {"resource": "cpu", "maxPerPod": 2},
    "pods": [
        {"stages": ["prepare"], "resources": {"cpu": "50m", "memory": "256Mi"}},
        {"stages": ["preflight"], "resources": {"cpu": "200m", "memory": "3Gi"}},
        # The endpoint gets as much processor time as a stage. Two of these pods fit a machine with two cores.
        {"stages": ["train"], "resources": {"cpu": "750m", "memory": "6Gi"}},
        {"stages": ["evaluate"], "resources": {"cpu": "750m", "memory": "4Gi"}},
        {"stages": ["serve"], "resources": {"cpu": "750m", "memory": "3Gi"}},
    ],
    "serving": {"engine": "Transformers"},
    "store": {"uri": "pvc://artifacts", "accessMode": "ReadWriteOnce"},
}
TWO_THREADS: Final[dict[str, Any]] = {
    "stages": ["train", "evaluate"],
    "env": [{"name": "OMP_NUM_THREADS", "value": "2"}],
}
"""One more entry of the demo's profile. By the CPU request, a stage would have one thread, but the second
core is idle while no one uses the endpoint."""


def images() -> References:
    """Build the images of the present sources unless `make images` has built them."""
    return build(Variant.CPU).names


def values(refs: References, **others: object) -> str:
    """The chart's values as YAML; `others`: in addition to those of the demo."""
    return yaml.safe_dump(
        {
            "image": _image(refs.operator),
            "trainerImage": _image(refs.trainer),
            "defaultProfile": {"spec": PROFILE},
            **others,
        }
    )


def install(access: Access, refs: References, **others: object) -> None:
    """Install or upgrade the definitions and the operator, and wait until it is ready.

    `others`: values in addition to those of the demo.

    Raises:
        DemoError: Helm failed; the message contains Helm's message.
    """
    install_definitions(access)
    install_operator(access, refs, CHART, **others)


def install_definitions(access: Access) -> None:
    """Install or upgrade the definitions. Those that kubectl made join the release.

    Raises:
        DemoError: Helm failed, or is older than 3.17.
    """
    # Helm 3 overwrites fields that another tool set without this option.
    is_helm3 = access.helm("version", "--template={{.Version}}").startswith("v3.")
    access.helm(
        "upgrade", "--install", DEFINITIONS, str(CHART.with_name(DEFINITIONS)), f"--namespace={SYSTEM}",
        "--create-namespace", "--take-ownership", *(() if is_helm3 else ("--force-conflicts",)),
    )  # fmt: skip


def install_operator(access: Access, refs: References, chart: Path = CHART, **others: object) -> None:
    """Install or upgrade the operator and wait until it is ready.

    `others`: values in addition to those of the demo.

    Raises:
        DemoError: Helm failed; the message contains Helm's message.
    """
    try:
        access.helm(
            "upgrade", "--install", RELEASE, str(chart), f"--namespace={SYSTEM}", "--create-namespace",
            "--values=-", "--wait", "--timeout=3m", text=values(refs, **others),
        )  # fmt: skip
    except DemoError as error:
        raise DemoError(
            str(error),
            [f"kubectl -n {SYSTEM} describe pods", f"kubectl -n {SYSTEM} logs deployment/{RELEASE}"],
        ) from error


def _image(reference: str) -> dict[str, str]:
    repository, _, tag = reference.rpartition(":")
    return {"repository": repository, "tag": tag}
