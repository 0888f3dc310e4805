"""The guided demo: one run from rows to an endpoint, then a second one that the endpoint rolls to."""
