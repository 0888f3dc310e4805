# SPDX-License-Identifier: Apache-2.0
"""How the processes of a run find each other, detect a lost peer, and share rows."""

import os
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from torch.distributed import DistError, TCPStore  # type: ignore[attr-defined]

from finetune_trainer.contract.environment import NODE_RANK_ENV
from finetune_trainer.contract.vocabulary import ExitCode, FailureReason
from finetune_trainer.distributed.distributed_group import (
    GRACE_SECONDS,
    HEARTBEAT_TIMEOUT_SECONDS,
    PeerMonitor,
    nccl_environment,
)
from finetune_trainer.distributed.launcher import is_launcher, pod_exit_code
from finetune_trainer.distributed.process_group import (
    LOCAL_RANK_ENV,
    Group,
    GroupFinished,
    PeerLost,
    ProcessRank,
)
from finetune_trainer.distributed.rendezvous import (
    MAX_PENDING_PER_ADDRESS,
    PeerNotAuthenticated,
    Rendezvous,
    TunnelClient,
    read_key,
)
from finetune_trainer.runtime.termination import Preempted, StageFailure
from finetune_trainer.tokens.encoding import IGNORE_INDEX, EncodedRow
from finetune_trainer.train.batches import blank_row
from tests.trainer.processes import TIMEOUT_SECONDS, run, start_function
from tests.trainer.test_train_distributed import KEY, Pods, received
from tests.trainer.workbench import Workbench
from tests.waiting import eventually
from tools.cluster.layout import free_port


def watch_a_silent_peer(port: int, left: str | None, silent: float) -> None:
    """Hang as rank 0 of two; the other process has recorded `left` as its end."""
    store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=5))
    if left is not None:
        store.set("left/1", left)
    there = ProcessRank(rank=0, size=2, local_rank=0, local_size=1, host="127.0.0.1", port=0)
    PeerMonitor(
        store, there, threading.Event(), interval_seconds=0.05, timeout_seconds=silent, grace_seconds=0.1
    )
    threading.Event().wait()


def member(rank: int, size: int) -> Group:
    group = Group()
    group.rank, group.size = rank, size
    return group


def process_rank(rank: int, size: int = 3, host: str = "127.0.0.1") -> ProcessRank:
    return ProcessRank(rank=rank, size=size, local_rank=0, local_size=1, host=host, port=free_port())


def rendezvous(
    where: ProcessRank,
    patience: float = 1.0,
    *,
    stopped: bool = False,
    finished: bool = False,
    key: bytes | None = KEY,
) -> Any:
    stop = threading.Event()
    if stopped:
        stop.set()
    return Rendezvous(where, stop, lambda: finished, patience, key)


def test_rank_0_names_the_ranks_that_did_not_connect() -> None:
    with pytest.raises(PeerLost, match=r"after 1 seconds 2 of 3 processes have not connected: rank 1, 2"):
        rendezvous(process_rank(0)).meet()


@pytest.mark.parametrize("host", ["no-such-host.invalid", "127.0.0.1"])
def test_a_process_without_rank_0_names_its_address(host: str) -> None:
    with pytest.raises(PeerLost, match=rf"rank 0 at {host}:\d+: "):
        rendezvous(process_rank(1, host=host)).meet()


@pytest.mark.parametrize("rank", [0, 1])
def test_a_waiting_process_can_be_stopped(rank: int) -> None:
    with pytest.raises(Preempted):
        rendezvous(process_rank(rank), patience=60, stopped=True).meet()


def test_a_process_that_starts_after_the_result_does_not_wait() -> None:
    with pytest.raises(GroupFinished):
        rendezvous(process_rank(1), patience=60, finished=True).meet()


def test_a_restarted_process_waits_for_the_next_session() -> None:
    """The session of its predecessor learns that the process is lost."""
    where = process_rank(1, size=2)
    leader = ProcessRank(rank=0, size=2, local_rank=0, local_size=1, host=where.host, port=where.port)
    stores: list[Any] = []
    thread = threading.Thread(target=lambda: stores.append(rendezvous(leader, 60).meet()))
    thread.start()
    first = rendezvous(where, 60).meet()
    thread.join()

    with pytest.raises(PeerLost, match="in the session of the process that this process replaces"):
        rendezvous(where).meet()

    assert first.get("left/1") == b"lost"


@contextmanager
def leading(size: int = 2, local_size: int = 1) -> Iterator[int]:
    """The port at which rank 0 waits until all processes are connected."""
    where = ProcessRank(
        rank=0, size=size, local_rank=0, local_size=local_size, host="127.0.0.1", port=free_port()
    )
    stores: list[TCPStore] = []  # an unreferenced store is closed
    thread = threading.Thread(target=lambda: stores.append(rendezvous(where, 60).meet()))
    thread.start()
    eventually("a port", lambda: answers("127.0.0.1", where.port))
    yield where.port
    follower = ProcessRank(
        rank=1, size=2, local_rank=local_size - 1, local_size=local_size, host="127.0.0.1", port=where.port
    )
    rendezvous(follower, 60).meet()
    thread.join()


def answers(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), 5).close()
    except OSError:
        return False
    return True


def test_the_store_of_one_pod_is_reached_from_that_pod_only() -> None:
    with leading(local_size=2) as port:
        assert not answers("127.0.0.2", port)  # any other address of this machine


def test_the_store_of_several_pods_requires_the_key() -> None:
    with leading() as port:
        assert answers("127.0.0.2", port)
        with pytest.raises(DistError):
            TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=1))


def test_a_stranger_that_never_authenticates_does_not_keep_the_processes_of_the_run_out() -> None:
    with leading() as port, ExitStack() as stack:
        silent = [
            stack.enter_context(
                socket.create_connection(("127.0.0.1", port), source_address=("127.0.0.3", 0))
            )
            for _ in range(MAX_PENDING_PER_ADDRESS + 40)
        ]
        # The last one is refused: the leader closes it without a challenge.
        silent[-1].settimeout(TIMEOUT_SECONDS)
        assert silent[-1].recv(1) == b""
        TunnelClient("127.0.0.1", port, KEY).connect().close()


def test_a_process_with_another_key_does_not_join() -> None:
    with leading() as port:
        where = ProcessRank(rank=1, size=2, local_rank=0, local_size=1, host="127.0.0.1", port=port)

        with pytest.raises(PeerLost):
            rendezvous(where, key=b"a" * 32).meet()


def test_a_process_does_not_join_a_leader_that_has_another_key() -> None:
    with socket.create_server(("127.0.0.1", 0)) as impostor:

        def answer() -> None:
            connection, _ = impostor.accept()
            connection.sendall(bytes(32))
            connection.sendall(connection.recv(64)[32:])  # the proof that the other end sent

        thread = threading.Thread(target=answer)
        thread.start()
        tunnel = TunnelClient("127.0.0.1", impostor.getsockname()[1], KEY)

        with pytest.raises(PeerNotAuthenticated, match="does not have the key of this run"):
            tunnel.connect()
        thread.join()


def test_a_recorded_exchange_cannot_be_replayed() -> None:
    with leading() as port:
        said: list[bytes] = []
        with (
            socket.create_server(("127.0.0.1", 0)) as listener,
            socket.create_connection(("127.0.0.1", port)) as gate,
        ):

            def overhear() -> None:
                connection, _ = listener.accept()
                connection.sendall(gate.recv(32))
                said.append(connection.recv(64))
                gate.sendall(said[0])
                connection.sendall(gate.recv(32))

            thread = threading.Thread(target=overhear)
            thread.start()
            TunnelClient("127.0.0.1", listener.getsockname()[1], KEY).connect().close()
            thread.join()
        with socket.create_connection(("127.0.0.1", port)) as again:
            again.sendall(said[0])

            assert len(received(again)) == 32  # a challenge, and no proof


@pytest.mark.parametrize(("content", "complaint"), [(None, "cannot be read"), (b"short", "has 5 bytes")])
def test_a_key_that_cannot_be_used_ends_the_run_with_advice(
    tmp_path: Path, content: bytes | None, complaint: str
) -> None:
    if content is not None:
        (tmp_path / "key").write_bytes(content)

    with pytest.raises(StageFailure, match=complaint) as caught:
        read_key(tmp_path / "key")

    assert caught.value.reason == FailureReason.INVALID_CONFIG


@pytest.mark.parametrize(
    ("left", "silent", "code"),
    [(None, 0.5, 21), ("lost", 2 * TIMEOUT_SECONDS, 21), ("preempted", 2 * TIMEOUT_SECONDS, 20)],
)
def test_a_process_that_hangs_ends_when_another_is_gone(left: str | None, silent: float, code: int) -> None:
    with start_function(watch_a_silent_peer, free_port(), left, silent) as process:
        assert process.wait() == code


@pytest.mark.parametrize(
    ("codes", "code"),
    [
        ([0, 0], 0),
        ([20, 20], 20),
        ([21, 21], 21),
        ([20, 21], 21),
        ([0, 21], 21),
        ([21, 10], 10),
        ([1, 21], 1),
        ([-9, 21], 137),
        ([-6, 21], 21),
        ([-6, 0], 134),
        ([-6, 10], 10),
        ([-6], 134),
        ([-15, 20], 20),
    ],
)
def test_a_pod_ends_as_its_processes_agree(codes: list[int], code: int) -> None:
    assert pod_exit_code(codes, [False] * len(codes)) == code


@pytest.mark.parametrize(
    ("codes", "silences", "code"),
    [
        ([-6], [True], 21),
        ([-6, -6], [False, True], 21),
        ([-6, 0], [False, True], 134),  # the peer that was silent is the one that aborted
        ([-11], [True], 139),
    ],
)
def test_an_aborted_process_lost_a_peer_if_one_was_silent(
    codes: list[int], silences: list[bool], code: int
) -> None:
    assert pod_exit_code(codes, silences) == code


def watch_until_aborted(port: int, silence_file: Path, peer: str) -> None:
    """Abort as rank 0 of two when the other process is silent, or at once if it is alive."""
    store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=5))
    where = ProcessRank(rank=0, size=2, local_rank=0, local_size=1, host="127.0.0.1", port=0)
    PeerMonitor(
        store,
        where,
        threading.Event(),
        interval_seconds=0.02,
        silent_seconds=0.1 if peer == "silent" else 2 * TIMEOUT_SECONDS,
        timeout_seconds=2 * TIMEOUT_SECONDS,
        silence_file=silence_file,
    )
    while int(store.add("beat/0", 0)) < 3 or (peer == "silent" and not silence_file.exists()):
        store.wait(["beat/0"])
    os.abort()


@pytest.mark.parametrize(("peer", "code"), [("silent", ExitCode.PEER_LOST), ("alive", 134)])
def test_a_process_leaves_a_file_for_its_launcher_while_a_peer_is_silent(
    tmp_path: Path, peer: str, code: int
) -> None:
    silence_file = tmp_path / "silence"
    with start_function(watch_until_aborted, free_port(), silence_file, peer) as process:
        ended = process.wait()

    assert ended == -signal.SIGABRT
    assert pod_exit_code([ended], [silence_file.exists()]) == code


def test_a_peer_that_answers_again_was_not_lost(tmp_path: Path) -> None:
    silence_file, port = tmp_path / "silence", free_port()
    store = TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=5))
    where = ProcessRank(rank=0, size=2, local_rank=0, local_size=1, host="127.0.0.1", port=0)
    monitor = PeerMonitor(
        store,
        where,
        threading.Event(),
        interval_seconds=0.02,
        silent_seconds=0.1,
        timeout_seconds=2 * TIMEOUT_SECONDS,
        silence_file=silence_file,
    )
    eventually("the peer is silent", silence_file.exists)

    def beats() -> bool:
        store.add("beat/1", 1)
        return not silence_file.exists()

    eventually("the peer is alive", beats)
    monitor.close()


def test_nccl_leaves_it_to_the_monitor_to_end_a_process() -> None:
    environment = nccl_environment(timedelta(minutes=60))

    assert environment["TORCH_NCCL_ASYNC_ERROR_HANDLING"] == "0"
    assert environment["TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC"] == "3600"
    shortest = int(nccl_environment(timedelta(seconds=1))["TORCH_NCCL_HEARTBEAT_TIMEOUT_SEC"])
    assert shortest > HEARTBEAT_TIMEOUT_SECONDS + GRACE_SECONDS


@pytest.mark.parametrize(
    ("nodes", "devices", "environ", "launches"),
    [
        (1, 1, {}, False),
        (1, 2, {}, True),
        (2, 1, {}, True),
        (2, 1, {LOCAL_RANK_ENV: "0"}, False),
    ],
)
def test_every_pod_of_a_run_with_several_processes_has_a_launcher(
    tmp_path: Path, nodes: int, devices: int, environ: dict[str, str], launches: bool
) -> None:
    config = Pods(Workbench(tmp_path)).together(nodes=nodes, devices=devices)

    assert is_launcher(config, environ) is launches


def test_ranks_are_counted_through_all_pods(tmp_path: Any) -> None:
    config = Pods(Workbench(tmp_path), settings={"processes": 6}).together(
        nodes=3, devices=2, coordinator="run-train-0"
    )

    there = ProcessRank.of(config, {NODE_RANK_ENV: "2", LOCAL_RANK_ENV: "1"})

    assert (there.rank, there.size, there.local_rank, there.host) == (5, 6, 1, "run-train-0")
    assert ProcessRank.of(config, {NODE_RANK_ENV: "0", LOCAL_RANK_ENV: "0"}).is_main_process


@pytest.mark.parametrize(
    ("change", "environ", "complaint"),
    [
        ({"nodes": 2, "coordinator": "a"}, {}, NODE_RANK_ENV),
        ({"nodes": 2, "coordinator": "a"}, {NODE_RANK_ENV: "2"}, "below 2"),
        ({"nodes": 2}, {NODE_RANK_ENV: "1"}, "coordinator"),
        ({"nodes": 3, "coordinator": "a"}, {NODE_RANK_ENV: "1"}, "hyperparameters.processes: 2"),
        ({}, {}, "hyperparameters.processes: 2"),
    ],
)
def test_an_impossible_rank_is_refused(
    tmp_path: Any, change: dict[str, Any], environ: dict[str, str], complaint: str
) -> None:
    with pytest.raises(StageFailure) as caught:
        ProcessRank.of(Pods(Workbench(tmp_path)).together(**change), environ)

    assert caught.value.reason == FailureReason.INVALID_CONFIG
    assert complaint in caught.value.message


def test_a_blank_row_has_no_labels() -> None:
    assert blank_row(EncodedRow([5, 6, 7], [IGNORE_INDEX, 6, 7])) == EncodedRow([5], [IGNORE_INDEX])


def test_one_process_does_not_train_what_was_planned_for_two(tmp_path: Any) -> None:
    ended = run(Pods(Workbench(tmp_path)).together())

    assert ended.code == ExitCode.BAD_CONFIG
    assert "hyperparameters.processes: 2" in ended.result.message
