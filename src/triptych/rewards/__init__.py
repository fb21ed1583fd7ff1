"""Rewards: images and what they were made for to scores that a generator learns from.

shapes    the exact checker of the shapes world
"""

from triptych.rewards.shapes import ShapesChecker

__all__ = ["ShapesChecker"]
