"""Inference: from a trained model to images and text.

pipeline           UnifiedPipeline: generate, edit, reconstruct, encode, chat
generation_config  generation parameters: validation and expansion per image
loading            presets, folders and checkpoints to a ready model
chat_messages      chat messages of people and clients
offload            CPU offload: each network on the device only while it runs
quantization       4- and 8-bit weights by bitsandbytes
trusted_config     class paths in model files: ours, and those the user trusts
"""
