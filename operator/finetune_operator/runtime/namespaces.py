"""Namespaces, looked up when something in one is being deleted: they are not watched."""

from finetune_operator.engine.cluster import Cluster
from finetune_operator.engine.resources import NAMESPACE


class Namespaces:
    """Answers to "is this namespace going?"."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def is_terminating(self, name: str) -> bool:
        """Whether the namespace is being deleted, or gone: nothing can be created in it any more."""
        namespace = await self._cluster.get(NAMESPACE, "", name)
        return namespace is None or "deletionTimestamp" in namespace["metadata"]
