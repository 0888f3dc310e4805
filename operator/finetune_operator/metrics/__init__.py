# SPDX-License-Identifier: Apache-2.0
"""Prometheus metrics of the operator.

- Counters have no object names as labels except the namespace and the ComputeProfile. Their series end 10 to
  20 minutes after the last object of the namespace, or after the ComputeProfile. Dropping them at once would
  lose values that Prometheus has not scraped yet.
- A counter that is queried with `increase` starts at 0, because Prometheus sees no increase in a series that
  starts at 1.
- Metrics about one object are gauges. They are computed from the caches at each scrape, so they disappear
  with the object. At most 2,000 objects of a kind have such series, those with a problem first.
- A scrape reads the caches in the event loop and makes the text in a thread, which takes longer.
"""
