"""Prometheus metrics of the operator.

Labels are bounded: no counter carries the name of an object. What stands for one object is a gauge that is
computed when it is asked for, from the caches, so that it vanishes with the object; at most `SERIES_LIMIT`
objects of a kind have such series.

A counter that `increase` is to be asked of begins at 0: Prometheus sees no increase in a series that begins
at 1.
"""
