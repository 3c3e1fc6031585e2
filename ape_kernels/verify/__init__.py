"""Which backend is right and fastest on this very machine: found out by trying, each candidate in a process of its own.

auto.py        the choice, as `backend="auto"` makes it on a GPU: kept verdict, or verification
task.py        what is verified (`Task`) and what came of it (`Verdict`)
signature.py   a program without its weights, and a program with random weights made from that
programs.py    programs of every kind of step, for ``python -m ape_kernels verify`` (command.py)
judge.py       starts the candidates one after the other, compares, and gives the verdict
process.py     a process with a time limit, killed with all that it started
candidate.py   what runs in such a process: one backend on some patches
contract.py    when results are right
cache.py       verdicts on disk
device.py      the few things that depend on the kind of device

Nothing here imports a backend but candidate.py, which runs in the other process.
"""
