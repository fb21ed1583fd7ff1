"""DPG-Bench (arXiv 2403.05135): alignment of images with long prompts, by yes-or-no questions.

The published judge is mPLUG-large; here the user chooses the judge, so a score is never the
official number, and its report names the judge.

    layout     folder layout and prompts
    questions  questions and their dependencies
    scoring    scores of a folder
"""

from triptych.evaluation.dpg.layout import grid_path, join_grid, read_prompts
from triptych.evaluation.dpg.questions import read_questions
from triptych.evaluation.dpg.scoring import score

__all__ = ["grid_path", "join_grid", "read_prompts", "read_questions", "score"]
