"""Synthetic data set of shapes, with an exact checker.

world      scenes and their rendering
captions   meaning of captions, captions, splits
questions  questions with exact answers
edits      edits with exact results
checker    reads an image and scores it
shards     writes WebDataset shards
tokenizer  trains the tokenizer of the tiny preset
"""
