"""Parity with the published code: its recorded inputs and outputs, through our classes.

A folder of cases holds what the published BLIP3-o computed, in float32 on one thread, at tiny size
with random weights. Each family of cases has a file here that runs its inputs through the
classes which train and generate, and says how far every recorded quantity is off. Sizes are read
from the case alone.
"""

from triptych.evaluation.parity.report import Report, run_cases

__all__ = ["Report", "run_cases"]
