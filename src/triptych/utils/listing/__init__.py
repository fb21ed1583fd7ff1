"""Listing of data set files and the role of each, for loader and evaluation.

folders      files, images and captioned samples of a folder
names        hidden names, suffixes, and the role of a file by its name
shards       *.tar files of a folder, glob or brace pattern
table        captions of a folder in one table
tar          tar archives, untrusted: members, damage, samples
tar_headers  headers of a tar archive
"""
