# SPDX-License-Identifier: Apache-2.0
"""Speed and cost of reconciling many FineTuneJobs from creation to completion."""
