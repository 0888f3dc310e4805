# vLLM for CPUs as an engine image, for tests only: nothing that the project ships contains it.
# The packages, which are those of tools/peers/vllm.py, become a layer above it on the node.
ARG BASE_IMAGE=python:3.11-slim-bookworm
FROM ${BASE_IMAGE}
RUN apt-get update \
 && apt-get install --yes --no-install-recommends libnuma1 util-linux \
 && rm -rf /var/lib/apt/lists/* \
 && python3 -m venv --without-pip /opt/venv
# The package has no command of this name, which the operator's pods run.
RUN printf '#!/bin/sh\nexec python3 -m vllm.entrypoints.cli.main "$@"\n' > /usr/local/bin/vllm \
 && chmod 755 /usr/local/bin/vllm
ENV PATH=/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 OMP_WAIT_POLICY=PASSIVE \
    OMP_NUM_THREADS=1 VLLM_CPU_OMP_THREADS_BIND=nobind VLLM_ENABLE_V1_MULTIPROCESSING=0 TORCHDYNAMO_DISABLE=1
