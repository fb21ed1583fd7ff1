"""Index of a WebDataset shard.

index          index of a shard: places of the samples, problems
index_format   bytes of an index file
build_index    builds missing indexes in parallel
index_columns  caption tokens and checksums in an index
identity       whether a shard is the one that was indexed
"""
