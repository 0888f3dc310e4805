# SPDX-License-Identifier: Apache-2.0
"""What a user can do about a JSON API of theirs that cannot be used."""

from finetune_trainer.contract.references import SecretMount
from finetune_trainer.remote.remoteproblems import ProblemKind, RemoteProblem


def advice_about(problem: RemoteProblem, credentials: SecretMount | None, otherwise: str) -> str:
    """What to do, in the imperative.

    Args:
        problem: why the API cannot be used.
        credentials: Secret that the `credentialsSecretRef` of the API names.
        otherwise: what to do about a response that is wrong for this API.
    """
    match problem.kind:
        case ProblemKind.DENIED if credentials is None:
            return "name a Secret with a token in its credentialsSecretRef"
        case ProblemKind.DENIED:
            return f"correct Secret {credentials.name}" if credentials else otherwise
        case ProblemKind.UNTRUSTED:
            return "add the certificate of its authority as caBundle to the Secret of credentialsSecretRef"
        case ProblemKind.FORBIDDEN_ADDRESS:
            return "use another server"
        case ProblemKind.TRANSIENT:
            return "check that its server runs, and that pods of this namespace can connect to it"
    return otherwise
