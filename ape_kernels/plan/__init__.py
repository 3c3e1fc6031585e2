"""Plan, then run: how deep each cell of an image runs is decided from the image alone.

fit.py      what is known of a network, and what it expects of a cell
fitting.py  how that is learned from pictures: `fit_exits`; measure.py, tones.py and ring.py what is measured for it
plan.py     plans for a fidelity or a budget; work.py what they cost
"""

from ape_kernels.plan.fit import ExitFit
from ape_kernels.plan.plan import Plan, make_plan, plan_within

__all__ = ["ExitFit", "Plan", "make_plan", "plan_within"]
