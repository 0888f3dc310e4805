"""What a pod finds around it: names of environment variables, mounts, ports, and their limits."""

from typing import Final

CONFIG_ENV: Final = "FINETUNE_CONFIG"
MAX_CONFIG_BYTES: Final = 64 * 1024
"""Largest config in bytes; one environment variable takes at most 131,071."""
TERMINATION_MESSAGE_PATH: Final = "/dev/termination-log"
MAX_TERMINATION_MESSAGE_BYTES: Final = 3500
"""Largest result in bytes; the kubelet keeps 4,096 of all containers' messages together."""

STORE_MOUNT: Final = "/mnt/store"
SOURCE_MOUNT: Final = "/mnt/source"
BASE_MODEL_MOUNT: Final = "/mnt/base-model"
MODELS_MOUNT: Final = "/mnt/models"
"""Where a serving pod's init container puts what it fetched, and the server reads it."""
CREDENTIALS_MOUNT: Final = "/var/run/finetune/credentials"
"""Holds a folder for each Secret of type `finetune.dev/credentials` that the pod has, one file a key."""
API_KEYS_MOUNT: Final = "/var/run/finetune/api-keys"
"""Holds the API keys of an endpoint, one file a key."""
SCRATCH_MOUNT: Final = "/tmp"  # noqa: S108 - an emptyDir; the root file system is read-only

REPORT_TOKEN_PATH: Final = "/var/run/finetune/report/token"
REPORT_AUDIENCE: Final = "finetune-report"
REPORT_PATH: Final = "/v1/reports"

SERVE_PORT: Final = 8000
METRICS_PORT: Final = 9090
"""Prometheus port of a training pod."""
RENDEZVOUS_PORT: Final = 29500
"""Where the processes of a run meet: a port of the pod with index 0."""
PEER_KEY_MOUNT: Final = "/var/run/secrets/finetune/peers"
PEER_KEY_FILE: Final = "key"
"""Of the Secret that is mounted there in each pod of a run that has several: 32 random bytes."""
NODE_RANK_ENV: Final = "JOB_COMPLETION_INDEX"
"""Set by Kubernetes in the pods of an Indexed Job: the pod's index."""
