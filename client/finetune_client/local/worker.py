# SPDX-License-Identifier: Apache-2.0
"""Carries out the runs of a folder, and serves its endpoints, while a Python program waits for them."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager

from finetune_client.errors import OperationError
from finetune_client.local.files import claims_of
from finetune_client.local.kubelet import VolumeFolders
from finetune_client.local.machine_checks import check_memory, check_model, check_trainer
from finetune_client.local.persistence import Folder
from finetune_client.local.profile import STORE, machine_profile, this_machine
from finetune_client.local.session import Session
from finetune_operator.plan import Manifest


@contextmanager
def carrying_out(folder: Folder, volumes: VolumeFolders) -> Iterator[Callable[[float], None]]:
    """During the block, runs continue while its value waits for a number of seconds.

    At the end, and after Ctrl-C, processes save their state and end. The next block continues.

    Raises:
        FolderInUse: another program carries out the runs.
        OperationError: this machine lacks what a run needs, or nothing can continue.
    """
    with _session(folder, volumes) as session:
        turns = session.follow(lambda: False)

        def wait(seconds: float) -> None:
            until = time.monotonic() + seconds
            while time.monotonic() < until:
                next(turns)

        yield wait


@contextmanager
def serving(folder: Folder, volumes: VolumeFolders, endpoint: str) -> Iterator[str]:
    """During the block, an endpoint of the folder serves; yields its base URL when it is ready.

    Raises:
        FolderInUse: another program carries out the runs.
        OperationError: the endpoint does not exist or cannot start.
    """
    with _session(folder, volumes) as session:
        if ("InferenceDeployment", endpoint) not in session.cluster.objects:
            raise OperationError(f"InferenceDeployment {endpoint} does not exist in {folder.root}")
        session.kubelet.serves = True
        ended = threading.Event()
        url: Future[str] = Future()
        thread = threading.Thread(target=_serve, args=(session, endpoint, ended, url), daemon=True)
        thread.start()
        try:
            yield url.result()
        finally:
            ended.set()
            thread.join()


def _serve(session: Session, endpoint: str, ended: threading.Event, url: "Future[str]") -> None:
    """Take turns until the end; the result is the URL, or why there is none."""
    try:
        for _ in session.follow(ended.is_set):
            if url.done():
                continue
            failure = session.failure("InferenceDeployment", endpoint)
            if failure is not None:
                url.set_exception(
                    OperationError(
                        f"InferenceDeployment {endpoint}: {failure.message}", exit_code=failure.exit_code
                    )
                )
            elif (ready := session.url(endpoint)) is not None:
                url.set_result(ready)
    except OperationError as error:
        if not url.done():
            url.set_exception(error)


@contextmanager
def _session(folder: Folder, volumes: VolumeFolders) -> Iterator[Session]:
    """A session over the stored objects, with the profile of this machine."""
    check_trainer()
    machine = this_machine()
    with folder.locked():
        session = Session(folder, volumes)
        objects = list(session.cluster.objects.values())

        def check() -> None:
            for run in session.cluster.of("FineTuneJob").values():
                check_memory(run, machine)

        session.before_start = check
        check_model(objects, volumes, machine)
        try:
            claims = sorted({STORE, *claims_of(objects)})
            for manifest in (machine_profile(machine), *map(claim_object, claims)):
                session.apply(manifest)
            session.settle()
            yield session
        finally:
            session.close()


def claim_object(name: str) -> Manifest:
    """A claim for which this machine has a folder."""
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name},
        "spec": {"accessModes": ["ReadWriteMany"]},
        "status": {"phase": "Bound"},
    }
