"""DPG-Bench (arXiv 2403.05135): do images show what long prompts say, asked question by question?

The published judge is mPLUG-large; here it is whichever the user names, so a score is never the
official number, and says who judged.

    layout     folder layout and prompts
    questions  questions and their dependencies
    scoring    scores of a folder
"""

from triptych.evaluation.dpg.layout import grid_path, join_grid, read_prompts
from triptych.evaluation.dpg.questions import read_questions
from triptych.evaluation.dpg.scoring import score

__all__ = ["grid_path", "join_grid", "read_prompts", "read_questions", "score"]
