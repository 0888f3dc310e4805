"""What happens between two optimizer steps, one concern per module, over one run state.

`events` hands each event to the callbacks in this order: Heartbeat, Reporting, Divergence, Keeping,
Validating, Saving. Each may end training by raising Preempted, StageFailure or StoppedEarly; those after it
are not called then.
"""
