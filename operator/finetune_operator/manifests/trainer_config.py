# SPDX-License-Identifier: Apache-2.0
"""Config of a trainer's pod: the contract that its image reads, common fields, and its variable."""

from dataclasses import dataclass
from typing import TypedDict

from finetune_operator.api.compute_profile import ComputeProfile
from finetune_operator.api.meta import Resource
from finetune_operator.manifests.volumes import parse_store, secret_mount
from finetune_trainer.contract.accelerators import DeviceFacts
from finetune_trainer.contract.base import CONTRACT_VERSION, Contract
from finetune_trainer.contract.environment import CONFIG_ENV, STORE_MOUNT
from finetune_trainer.contract.references import Owner, ReportTarget, StoreConfig


@dataclass(frozen=True, slots=True)
class TrainerImage:
    """A trainer image and its contract."""

    image: str
    contract: int


def choose_trainer(profile: ComputeProfile | None, default_image: str) -> TrainerImage:
    """The trainer image of the profile, or that of the operator.

    `images.trainerContract` belongs to `images.trainer`. Absent: the image reads the operator's version of
    the contract, as the operator's own image does.
    """
    own = profile.spec.images.trainer if profile is not None else None
    if profile is None or own is None:
        return TrainerImage(default_image, CONTRACT_VERSION)
    return TrainerImage(own, profile.spec.images.trainer_contract or CONTRACT_VERSION)


def config_variable(config: Contract) -> dict[str, str]:
    r"""The config as JSON, with each `$` as `\u0024`.

    In values of variables, Kubernetes replaces `$$` by `$`, and `$(NAME)` by a variable. A text of the user
    would then be another one in the pod, and the digest of the pod's config not that of the Job.
    """
    # All `$` of a JSON text are within strings.
    return {"name": CONFIG_ENV, "value": config.to_json().replace("$", r"\u0024")}


def escape_variables(argument: str) -> str:
    """An item of a container's command or arguments, which Kubernetes would expand in the same way."""
    return argument.replace("$", "$$")


class SharedFields(TypedDict):
    """Fields that the configs of all stages have."""

    contract: int
    owner: Owner
    run: str
    store: StoreConfig
    report: ReportTarget | None


def owner_of_pod(owner: Resource) -> Owner:
    """The object that a pod works for, as its config names it."""
    return Owner.model_validate(
        {"kind": owner.kind, "namespace": owner.namespace, "name": owner.name, "uid": owner.uid}
    )


@dataclass(frozen=True, slots=True)
class StageInputs:
    """What the builders of all configs get."""

    owner: Resource
    run: str
    """Folder of the results in the store."""
    store_uri: str
    report: ReportTarget | None
    """Where the pods report their progress."""
    store_credentials: str | None = None
    """Name of the Secret with the credentials of the store."""
    accelerators: int = 1
    """Devices of a pod that trains. CPU cores count as one: a single process uses them all."""
    contract_version: int = CONTRACT_VERSION
    """Version of the contract that the pod's trainer reads. The config has no newer fields."""
    coordinator: str | None = None
    """Host name of the first pod of a stage with several pods."""
    requested_accelerators: int = 0
    """CUDA devices that the stage's pod requests."""
    device: DeviceFacts | None = None
    """What is known about the devices of train."""
    host_memory_bytes: int | None = None
    """Memory of a train pod whose devices are CPU cores, if the profile sets it."""
    mfu: float | None = None
    """Median model FLOPs utilization of the last runs of the run's ComputeProfile."""
    max_run_seconds: int | None = None
    """Seconds that train may run."""
    max_unpacked_bytes: int | None = None
    """Limit of the unpacked files of a source, and of the rows made from them; None for the trainer's."""

    @property
    def shared(self) -> SharedFields:
        return {
            "contract": self.contract_version,
            "owner": self.contract_owner,
            "run": self.run,
            "store": self.store,
            "report": self.report,
        }

    @property
    def contract_owner(self) -> Owner:
        return owner_of_pod(self.owner)

    @property
    def store(self) -> StoreConfig:
        return store_config(self.store_uri, self.store_credentials)


def store_config(uri: str, secret: str | None) -> StoreConfig:
    """The store as a pod sees it.

    Args:
        secret: name of the Secret with its credentials.
    """
    claim = parse_store(uri)
    path = STORE_MOUNT if claim is None else claim.under(STORE_MOUNT)
    return StoreConfig(uri=uri, path=path, credentials=secret_mount("store", secret))
