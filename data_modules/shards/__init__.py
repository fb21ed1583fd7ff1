"""Index of a WebDataset shard.

index          index of a shard: places of the samples, problems
build_index    builds missing indexes in parallel
index_columns  caption tokens and checksums in an index
identity       whether a shard is the one that was indexed
"""
