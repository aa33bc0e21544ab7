"""Pictures of a rollout as SVG text: a story in, a string out. Pure.

Every element has a class and the same look as presentation attributes, never a `style` attribute, so that a picture is
whole under a strict content security policy, as a file of its own, in print and without colour: lines differ in dashes,
marks in shape, and words stand beside both. `CSS` gives the classes their colours in light, dark and print.
"""

from canaryd.charts.marks import CSS
from canaryd.charts.plots import difference, evidence, share, weight
from canaryd.charts.small import ruler, sparkline, step_bar

__all__ = ["CSS", "difference", "evidence", "ruler", "share", "sparkline", "step_bar", "weight"]
