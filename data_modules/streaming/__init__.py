"""Shards that cannot be seeked.

datamodule         StreamDataModule
shard_stream       endless training batches from shards in random order
tar_stream         samples of a tar stream
urls               shards by address: listed and opened
secure_webdataset  webdataset, imported in its secure mode
"""
