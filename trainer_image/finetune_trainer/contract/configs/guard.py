"""The config of the guard: a middleware in the process of an engine that has no code of the trainer."""

from finetune_trainer.contract.base import CONTRACT_VERSION, Contract


class GuardConfig(Contract):
    """Guard the port of an engine.

    The guard has only the engine's Python and reads the config as JSON. So no field has a default, which the
    wire form would leave out; a field may be null.
    """

    contract: int = CONTRACT_VERSION
    models: tuple[str, ...]
    """Served names. `/health` of the API's port fails until each of them has generated a token."""
    api_keys_path: str | None
    """Folder with the API keys, one file per key. None: requests need no key."""
    metrics_port: int
    """Port of `/metrics` and `/live`, which need no key. The API's port has neither."""
    request_deadline_seconds: int | None
    """Seconds from the arrival of a request after which it is ended. None: no deadline."""
    drain_file: str
    """While this file exists, the pod is terminating and each response closes its connection."""
    stall_seconds: int
    """`/live` fails if requests have been in flight for this long and none of them got a token."""
