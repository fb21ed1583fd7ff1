"""Index of a WebDataset shard.

index          a shard's index: where samples lie, what is lost
build_index    builds missing indexes in parallel
index_columns  caption tokens and checksums in an index
identity       whether a shard is the one that was indexed
"""
