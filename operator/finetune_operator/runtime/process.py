# SPDX-License-Identifier: Apache-2.0
"""The operator process: its command and logs, and its parts, started and stopped in order."""

import asyncio
import logging
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from functools import partial
from typing import Any, Final, Literal

from kubernetes.aio.client import Configuration
from pythonjsonlogger.json import JsonFormatter

from finetune_operator.api.finetune_job import FineTuneJob
from finetune_operator.api.labels import OPERATOR
from finetune_operator.api.meta import GROUP
from finetune_operator.engine.cache_memory import collect_completely_every_day, exempt_survivors
from finetune_operator.engine.client import KubernetesClient, load_configuration
from finetune_operator.engine.executor import Stamp
from finetune_operator.engine.lease import InstallationMark, Installations, Lease, LeaseThread, LeaseTimes
from finetune_operator.engine.queue import WorkQueue
from finetune_operator.engine.resources import POD, ResourceTypes
from finetune_operator.engine.watches import Reflector, Sweeper, Watches
from finetune_operator.manifests.labels import INSTALLATION, INSTALLATION_LEASE, WATCHED
from finetune_operator.metrics.changes import record_pod_end
from finetune_operator.metrics.device_gauges import DeviceCollector
from finetune_operator.metrics.object_gauges import ObjectStateCollector
from finetune_operator.metrics.process_metrics import OperatorMetrics, ProcessStateCollector
from finetune_operator.plan import Key, Manifest
from finetune_operator.report.authorization import Authorizer
from finetune_operator.report.progress_cache import ProgressCache
from finetune_operator.report.server import ReportEndpoint, ReportServer
from finetune_operator.runtime.caches import Caches
from finetune_operator.runtime.definitions import Definitions
from finetune_operator.runtime.http_servers import MetricsAccess, MetricsServer, ProbeServer, make_tls_context
from finetune_operator.runtime.kind_watch import KindFeed, KopfWatch
from finetune_operator.runtime.leader_term import FirstLists, Leadership, Term
from finetune_operator.runtime.settings import Settings, SettingsError
from finetune_operator.runtime.snapshots import SnapshotReader
from finetune_operator.runtime.triggers import ChangeTriggers


def configure_logs(level: str, format_: Literal["json", "text"]) -> None:
    """Write all records of `level` and above to standard output: one JSON object per line, or text."""
    handler = logging.StreamHandler(sys.stdout)
    handler.setFormatter(
        JsonFormatter(
            "{levelname}{name}{message}",
            style="{",
            timestamp="time",
            rename_fields={"levelname": "level", "name": "logger"},
        )
        if format_ == "json"
        else logging.Formatter("{asctime} {levelname:7} {name}: {message}", style="{")
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    # Kopf logs at INFO what it does with each object, and warns about signals that the operator handles.
    logging.getLogger("kopf").setLevel(max(logging.WARNING, root.level))
    logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)
    logging.getLogger("aiohttp.access").setLevel(logging.WARNING)


logger = logging.getLogger(__name__)

INSTALLATION_MARK: Final = InstallationMark(INSTALLATION, INSTALLATION_LEASE, WATCHED)
"""The chart writes it (templates/rbac.yaml)."""
STAMP: Final = Stamp(f"{GROUP}/applied")
"""Annotation of applied objects, with a hash of what was applied."""


class Process:
    """One operator process. `run` runs it from start to stop."""

    def __init__(self, settings: Settings, configuration: Configuration) -> None:
        self._settings = settings
        self._configuration = configuration
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        self._failure: BaseException | None = None
        self._is_restoring = False
        self._metrics = OperatorMetrics()
        self._caches = Caches(max_namespace_mebibytes=settings.max_namespace_mebibytes)
        self._lease = LeaseThread(
            lambda: KubernetesClient(configuration, ResourceTypes(), OPERATOR, self._metrics.requested),
            partial(_lease, settings),
        )
        self._cluster = KubernetesClient(
            configuration,
            ResourceTypes(self._caches.by_type),
            OPERATOR,
            self._metrics.requested,
            fence=self._lease.check,
        )
        self._watches = Watches()
        self._reader = SnapshotReader(self._caches, partial(self._watches.age, POD.plural))
        self._feed = KindFeed(
            self._cluster,
            self._caches,
            self._watches,
            settings.watch_namespaces,
            partial(KopfWatch, configuration, settings.watch_namespaces),
            relist_seconds=settings.relist_seconds,
        )
        self._first_lists = FirstLists(self._caches)
        self._queue: WorkQueue[Key] = WorkQueue(
            lambda key: key.namespace, self._reader.lock, self._first_lists.allow
        )
        # No worker takes keys before a term begins.
        self._queue.close()
        wakeups = ChangeTriggers(
            self._caches, self._reader, self._watches, self._queue, lambda: self._lease.held
        )
        self._board = ProgressCache(wakeups.add)
        self._server = ReportServer(
            Authorizer(self._cluster, self._caches.by_kind),
            self._board,
            active=lambda: self._lease.held,
            answered=self._metrics.reported,
        )
        self._endpoint = ReportEndpoint(
            self._cluster,
            self._server,
            STAMP,
            service=settings.report_service,
            namespace=settings.pod_namespace,
            address=settings.pod_ip,
            port=settings.report_port,
        )
        self._installations = Installations(
            self._cluster,
            settings.pod_namespace,
            settings.lease_name,
            mark=INSTALLATION_MARK,
            namespaces=settings.watch_namespaces,
            patience_seconds=settings.lease_duration_seconds,
        )
        self._definitions = Definitions(self._cluster)
        self._probes = ProbeServer(
            self._watches, self._metrics.registry, outdated=lambda: self._definitions.outdated
        )
        # Not the client of the reconcilers: a standby may not write with it, and has metrics as well.
        self._reviewer = KubernetesClient(configuration, ResourceTypes(), OPERATOR, self._metrics.requested)
        self._metrics_server = MetricsServer(MetricsAccess(self._reviewer), self._metrics.registry)
        self._metrics.registry.register(
            ProcessStateCollector(
                depth=lambda: self._queue.depth,
                ages=self._watches.ages,
                active=lambda: self._lease.held,
                lease_transitions=lambda: self._lease.transitions,
                report_up=lambda: self._endpoint.up,
                outdated=lambda: len(self._definitions.outdated or ()),
                large_namespaces=lambda: self._caches.bound.exceeded,
                other_installation=lambda: self._installations.other,
            )
        )
        self._metrics.registry.register(
            ObjectStateCollector(
                {kind: store.unsettled for kind, store in self._caches.kinds.items()},
                active=lambda: self._lease.held,
                pods=partial(self._caches.owned, POD),
                since_progress=self._board.since_progress,
                settled=self._caches.of(FineTuneJob).notes,
                max_series=settings.max_series_per_kind,
            )
        )
        self._metrics.registry.register(
            DeviceCollector(
                self._caches.by_kind,
                active=lambda: self._lease.held,
                calibration=self._reader.calibration,
            )
        )
        for store in self._caches.kinds.values():
            store.subscribe(self._forget_progress)
        self._caches.children[POD].subscribe(self._pod_changed)
        for cached in self._caches.by_type.values():
            cached.subscribe_epochs(self._restored)

    def stop(self) -> None:
        """Finish running passes, release the Lease, and let `run` return."""
        self._stopping.set()

    async def run(self) -> None:
        """Run until `stop`.

        Raises:
            RuntimeError: an endless task ended; the process must be restarted.
        """
        settings = self._settings
        await self._probes.start(settings.http_port, metrics=not settings.metrics_port)
        if settings.metrics_port:
            context = make_tls_context(
                settings.metrics_certificate, settings.metrics_service, settings.pod_namespace
            )
            await self._metrics_server.start(settings.metrics_port, context)
        # Create all before the first one runs, because each registers its watch at creation.
        listing: list[Sweeper | Reflector] = [*self._feed, *self._reflectors()]
        logger.info("listing all objects for the caches")
        tasks = [self._spawn(f"lists of {each.name}", each.run()) for each in listing]
        tasks.append(self._spawn("complete garbage collections", collect_completely_every_day()))
        try:
            if await self._completes(self._definitions.wait_until_current()) and await self._completes(
                self._watches.all_settled()
            ):
                exempt_survivors()
                self._feed.start()
                logger.info("the caches are complete; waiting for the lease %s", self._settings.lease_name)
                await self._leadership().run(self._stopping)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._feed.stop()
            await self._server.stop()
            await self._probes.stop()
            await self._metrics_server.stop()
            await self._reviewer.close()
            await self._lease.close()
            await self._cluster.close()
        if self._failure is not None:
            raise RuntimeError("an endless task of the process ended") from self._failure

    def _reflectors(self) -> Iterator[Reflector]:
        for child in self._caches.child_types:
            for namespace in self._settings.watch_namespaces or ("",):
                yield Reflector(
                    self._cluster,
                    child.type,
                    self._caches.children[child.type],
                    self._watches,
                    namespace=namespace,
                    selector=child.selector,
                    relist_seconds=self._settings.relist_seconds,
                )

    def _leadership(self) -> Leadership:
        term = Term(
            self._settings,
            cluster=self._cluster,
            caches=self._caches,
            reader=self._reader,
            watches=self._watches,
            feed=self._feed,
            queue=self._queue,
            first_lists=self._first_lists,
            board=self._board,
            endpoint=self._endpoint,
            metrics=self._metrics,
            stamp=STAMP,
        )
        return Leadership(
            self._lease,
            self._installations,
            self._queue,
            term.workers,
            prepare=term.prepare,
            upkeep=term.upkeep,
        )

    def _forget_progress(self, old: Manifest | None, new: Manifest | None) -> None:
        if old is not None and new is None:
            self._board.forget(old["metadata"]["uid"])

    def _pod_changed(self, old: Manifest | None, new: Manifest | None) -> None:
        if self._lease.held:
            record_pod_end(self._metrics, old, new)

    def _restored(self) -> None:
        """A store detected that etcd was restored from a snapshot: begin a new epoch of all stores."""
        if self._is_restoring:
            return
        self._is_restoring = True
        logger.warning(
            "etcd was restored: the API server has older versions than before. Listing and watching all types"
            " again"
        )
        self._metrics.etcd_restores.inc()
        for cached in self._caches.by_type.values():
            cached.begin_epoch()
        self._feed.restart_after_restore()
        self._is_restoring = False

    def _fail(self, error: BaseException) -> None:
        self._failure = error
        self.stop()

    def _spawn(self, name: str, endless: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(endless, name=name)

        def ended(task: asyncio.Task[None]) -> None:
            if not task.cancelled():
                self._fail(task.exception() or RuntimeError(f"{name} ended"))

        task.add_done_callback(ended)
        return task

    async def _completes(self, work: Coroutine[Any, Any, None]) -> bool:
        """Await the work, and return whether it completed before the process had to stop."""
        task = asyncio.create_task(work)
        stop = asyncio.create_task(self._stopping.wait())
        await asyncio.wait({task, stop}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            return False
        task.result()
        return True


def _lease(settings: Settings, cluster: KubernetesClient, stalled_seconds: Callable[[], float]) -> Lease:
    return Lease(
        cluster,
        settings.pod_namespace,
        settings.lease_name,
        identity=settings.pod_name,
        times=LeaseTimes.of(settings.lease_duration_seconds),
        stalled_seconds=stalled_seconds,
    )


async def run(settings: Settings) -> None:
    """Run the operator until SIGTERM or SIGINT."""
    exempt_survivors()
    process = Process(settings, await load_configuration())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, process.stop)
    await process.run()
    logger.info("stopped")


def main(arguments: Sequence[str] = ()) -> None:
    """Run the operator. If the process cannot start or continue, it logs why and exits with code 1.

    Args:
        arguments: settings of the command line, as `--SETTING=VALUE`.
    """
    try:
        settings = Settings.from_environment(arguments=arguments)
    except SettingsError as error:
        sys.exit(f"finetune-operator: {error}")
    configure_logs(settings.log_level, settings.log_format)
    try:
        asyncio.run(run(settings))
    except Exception:
        logger.exception("the operator stops after an error and must be restarted")
        sys.exit(1)
