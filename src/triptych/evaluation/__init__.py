"""Scores of a model: one file a benchmark."""

from triptych.evaluation.image_metrics.feature_distance import FeatureDistance
from triptych.evaluation.shapes.all_scores import evaluate_all
from triptych.evaluation.shapes.edit_eval import EditEval
from triptych.evaluation.shapes.shape_eval import ShapeEval

__all__ = ["EditEval", "FeatureDistance", "ShapeEval", "evaluate_all"]
