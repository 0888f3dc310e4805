"""How fast, and at what cost, the operator brings many FineTuneJobs from creation to their end."""
