"""Reconcile InferenceDeployments: roll out revisions and route requests to them."""
