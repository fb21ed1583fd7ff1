"""Shards that cannot be seeked.

datamodule  StreamDataModule
tar_stream  samples of a tar stream
"""
