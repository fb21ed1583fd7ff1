"""Cached image features.

cache          lookup and validation
feature_shard  features of one shard in a safetensors file
"""
