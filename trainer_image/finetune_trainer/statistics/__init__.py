# SPDX-License-Identifier: Apache-2.0
"""How sure a figure is: numbers of rows in, intervals out. Knows neither models nor metrics."""
