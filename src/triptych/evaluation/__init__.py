"""Scores of a model: one file a benchmark."""

from triptych.evaluation.edits import EditEval
from triptych.evaluation.feature_distance import FeatureDistance
from triptych.evaluation.shapes import ShapeEval
from triptych.evaluation.shapes_verdicts import evaluate_all

__all__ = ["EditEval", "FeatureDistance", "ShapeEval", "evaluate_all"]
