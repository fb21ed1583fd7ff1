"""Scores of a model: one file a benchmark."""

from triptych.evaluation.edits import EditEval
from triptych.evaluation.shapes import ShapeEval, evaluate_all

__all__ = ["EditEval", "ShapeEval", "evaluate_all"]
