# SPDX-License-Identifier: Apache-2.0
"""The replacement of variables that Kubernetes makes in commands, arguments and variables of containers."""

import re


def expanded(text: str) -> str:
    """The text as the container gets it, if each variable has the value X.

    As in third_party/forked/golang/expansion of Kubernetes.
    """
    return re.sub(r"\$(\$|\([^)]*\))", lambda found: "$" if found[1] == "$" else "X", text)
