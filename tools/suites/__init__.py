# SPDX-License-Identifier: Apache-2.0
"""Run the test suites, with several sessions in parallel, and measure their duration."""
