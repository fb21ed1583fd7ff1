"""Tools behind `triptych data`.

pack     any source into WebDataset shards
inspect  counts, lengths, duplicates, and a grid of images
"""
