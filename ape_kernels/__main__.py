"""``python -m ape_kernels``: show what this installation can run."""

from ape_kernels.environment import describe_environment

print(describe_environment())
