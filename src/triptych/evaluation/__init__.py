"""Benchmarks and their reports.

report           one report for every benchmark: JSON, table, page
comparison       comparison of reports of one benchmark
statistics       means and shares with confidence intervals
provenance       origin of the images that a report scores
expected_images  images that a benchmark expects in a folder
image_sources    images to be scored, from folders, tar shards or memory
image_cache      cache of generated images, for interrupted evaluations
image_evaluator  base of the evaluators that score generated images
charts           bar charts with intervals, by matplotlib
html_page        HTML pages from jinja2 templates, with one style sheet
html_report      a report as an HTML page
shapes           ShapeEval, EditEval and StoryEval, exact scores of the shapes world; the demo
geneval          GenEval
dpg              DPG-Bench
wise             WISE
image_metrics    FID, KID, CLIP score, diversity
judges           models that answer questions about images
lmms_eval        triptych models inside lmms-eval
parity           recorded cases of the published code
"""

from triptych.evaluation.image_metrics.feature_distance import FeatureDistance
from triptych.evaluation.shapes.all_scores import evaluate_all
from triptych.evaluation.shapes.edit_eval import EditEval
from triptych.evaluation.shapes.shape_eval import ShapeEval
from triptych.evaluation.shapes.story_eval import StoryEval

__all__ = ["EditEval", "FeatureDistance", "ShapeEval", "StoryEval", "evaluate_all"]
