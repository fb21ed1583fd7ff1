"""Scores of the shapes world.

shape_eval  accuracy of generation, questions and reconstruction, and of chance
edit_eval   accuracy of edits
story_eval  accuracy of conversations with images, turn by turn
all_scores  every score, in batches that processes share
common      seeds, batches and arrays
demo        the demo: scores and examples
demo_page   the demo's HTML page
"""
