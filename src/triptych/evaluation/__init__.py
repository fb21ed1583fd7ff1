"""Scores of a model: one file a benchmark."""

from triptych.evaluation.shapes import ShapeEval, evaluate_all

__all__ = ["ShapeEval", "evaluate_all"]
