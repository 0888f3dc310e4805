"""Speed and cost of reconciling many FineTuneJobs from creation to completion."""
