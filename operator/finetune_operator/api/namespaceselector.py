# SPDX-License-Identifier: Apache-2.0
"""Selector of the namespaces that may use a ComputeProfile."""

from typing import ClassVar

from finetune_operator.api.endpointaccess import PeerSelector
from finetune_operator.api.meta import CELRule


class SelectedNamespaces(PeerSelector):
    """Namespaces that have all of these labels and meet all of these conditions."""

    rules: ClassVar[tuple[CELRule, ...]] = (
        *PeerSelector.rules,
        CELRule(
            "size(self.matchLabels) > 0 || size(self.matchExpressions) > 0",
            "namespaceSelector needs matchLabels or matchExpressions, because an empty selector would allow"
            " all namespaces: name labels, or omit namespaceSelector",
            "matchLabels",
        ),
    )

    @property
    def is_empty(self) -> bool:
        """Whether it selects all namespaces, as only objects from before the rule can."""
        return not self.match_labels and not self.match_expressions
