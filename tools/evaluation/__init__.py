"""Tables about the intervals of an evaluation, from the code that computes them."""
