# SPDX-License-Identifier: Apache-2.0
"""Environment of a pod: names of environment variables, mounts and ports, and their limits."""

from typing import Final

CONFIG_ENV: Final = "FINETUNE_CONFIG"
MAX_CONFIG_BYTES: Final = 64 * 1024
"""Max size of a config. One environment variable holds at most 131,071 bytes."""
TERMINATION_MESSAGE_PATH: Final = "/dev/termination-log"
MAX_TERMINATION_MESSAGE_BYTES: Final = 3500
"""Max size of a result. The kubelet keeps 4,096 bytes for the messages of all containers together."""

STORE_MOUNT: Final = "/mnt/store"
SOURCES_MOUNT: Final = "/mnt/sources"
"""Holds one folder per source of rows, named by its number from 0."""
BASE_MODEL_MOUNT: Final = "/mnt/base-model"
MODELS_MOUNT: Final = "/mnt/models"
"""Folder where the init container of a serving pod writes the fetched models and the server reads them."""
MODEL_CACHE_MOUNT: Final = "/mnt/model-cache"
"""Volume with the whole models that serving pods read in place."""
VLLM_FOLDER: Final = ".vllm"
VLLM_MOUNT: Final = f"{MODELS_MOUNT}/{VLLM_FOLDER}"
"""Files that the init container of a vLLM pod writes in addition to the models."""
VLLM_PYTHON_FOLDER: Final = "python"
VLLM_PYTHONPATH: Final = f"{VLLM_MOUNT}/{VLLM_PYTHON_FOLDER}"
"""Folder of the Python package with `VLLM_MIDDLEWARE`."""
VLLM_MIDDLEWARE: Final = "finetune_trainer.serve.vllm.middleware.EndpointMiddleware"
"""Value of vLLM's option `--middleware`. Its config is that of the engine, in `CONFIG_ENV`."""
VLLM_CHAT_TEMPLATE: Final = f"{VLLM_MOUNT}/chat_template.jinja"
"""Value of vLLM's option `--chat-template`."""
VLLM_GENERATION_CONFIG: Final = VLLM_MOUNT
"""Value of vLLM's option `--generation-config`: the folder with `generation_config.json`."""
ANSWERS_MOUNT: Final = "/mnt/answers"
"""Folder in which the containers of an evaluate pod exchange prompts and the answers of a serving engine."""
ANSWERS_MODELS_FOLDER: Final = "models"
ANSWERS_MODELS: Final = f"{ANSWERS_MOUNT}/{ANSWERS_MODELS_FOLDER}"
"""Folder with a link to each folder of weights, under the names below."""
BASE_FOLDER: Final = "base"
TUNED_FOLDER: Final = "tuned"
LIVE_BASE_FOLDER: Final = "live-base"
LIVE_FOLDER: Final = "live"
ANSWERS_PYTHON_FOLDER: Final = "python"
ANSWERS_PYTHONPATH: Final = f"{ANSWERS_MOUNT}/{ANSWERS_PYTHON_FOLDER}"
"""Folder of the Python package for the image of the engine."""
ANSWERS_MODULE: Final = "finetune_trainer.evaluate.answering"
"""Package that runs in the image of the engine."""
CREDENTIALS_MOUNT: Final = "/var/run/finetune/credentials"
"""Holds one folder per Secret with credentials, with one file per key."""
API_KEYS_MOUNT: Final = "/var/run/finetune/api-keys"
"""Holds the API keys of an endpoint, one file per key."""
CUSTOM_METRICS_MOUNT: Final = "/mnt/custom-metrics"
"""Holds one folder per metric of the user, with the file `CUSTOM_METRIC_FILE`."""
CUSTOM_METRIC_FILE: Final = "metric.py"
TASKS_MOUNT: Final = "/mnt/tasks"
"""Holds one folder per task of general ability, with the files of its ConfigMap."""
PREDICTIONS_MOUNT: Final = "/mnt/predictions"
DATASET_MOUNT: Final = "/mnt/dataset"
SCRATCH_MOUNT: Final = "/tmp"  # noqa: S108 - an emptyDir; the root file system is read-only

REPORT_TOKEN_PATH: Final = "/var/run/finetune/report/token"
REPORT_AUDIENCE: Final = "finetune-report"
REPORT_PATH: Final = "/v1/reports"

SERVE_PORT: Final = 8000
METRICS_PORT: Final = 9090
"""Prometheus port of a training pod, and of a pod that serves with vLLM."""
RENDEZVOUS_PORT: Final = 29500
"""Port of the pod with index 0 where the processes of a run rendezvous."""
PEER_KEY_MOUNT: Final = "/var/run/secrets/finetune/peers"
PEER_KEY_FILE: Final = "key"
"""Key of the Secret mounted in each pod of a run with several pods: 32 random bytes."""
NODE_RANK_ENV: Final = "JOB_COMPLETION_INDEX"
"""Index of the pod, set by Kubernetes in the pods of an Indexed Job."""
