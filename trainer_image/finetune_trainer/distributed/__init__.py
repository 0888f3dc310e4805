# SPDX-License-Identifier: Apache-2.0
"""The processes that train one run: their ranks, the rendezvous, collectives, and detection of lost peers."""
