"""Training: the objective and the loop."""
