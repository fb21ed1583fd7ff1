"""Synthetic data set of shapes, with an exact checker.

world      scenes and their rendering
captions   captions, their meaning, and the splits
sizes      captions of one or two shapes that say their sizes
questions  questions with exact answers
near_misses  questions whether an image shows a caption
edits      edits with exact results
stories    conversations of drawing, edits and questions
checker    reads scenes from images and scores them
shards     writes WebDataset shards
tokenizer  trains the tokenizer of the tiny preset
"""
