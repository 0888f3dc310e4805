# SPDX-License-Identifier: Apache-2.0
"""Suites that need programs of peers, which no other suite installs."""
