"""Finds out which backends give right results on this machine, and which of them is fastest.

Each candidate is tried in a process of its own, because a wrong kernel may crash or hang.

auto.py        the choice that `backend="auto"` makes on a GPU, from a stored verdict or a new verification
task.py        what is verified (`Task`) and the result (`Verdict`)
signature.py   a program without its weights, and a program with random weights that is made from it
programs.py    programs with every kind of step, for ``python -m ape_kernels verify`` (command.py)
judge.py       starts the candidates one after the other, compares their results and gives the verdict
process.py     a process with a time limit, which is killed together with all that it started
candidate.py   what runs in such a process: one backend on some patches
contract.py    which results are right
cache.py       verdicts on disk
device.py      the few things that depend on the kind of device

Only candidate.py imports a backend; it runs in the other process.
"""
