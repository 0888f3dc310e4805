"""General ability: tasks of lm-evaluation-harness, done by the models of an evaluation."""
