"""Prometheus metrics of the operator.

No counter carries the name of an object but for its namespace and its ComputeProfile. Series of these end ten
to twenty minutes after the last object of the namespace, or after the ComputeProfile: dropped at once, they
would take along what nobody has scraped yet. What stands for one object is a gauge that is computed when it
is asked for, from the caches, so that it vanishes with the object; at most `SERIES_LIMIT` objects of a kind
have such series.

A counter that `increase` is to be asked of begins at 0: Prometheus sees no increase in a series that begins
at 1.
"""
