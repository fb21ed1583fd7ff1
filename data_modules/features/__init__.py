"""Cached image features.

cache       lookup and validation
shard_file  features of one shard in a safetensors file
"""
