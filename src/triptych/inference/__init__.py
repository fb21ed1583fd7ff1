"""Inference: from a trained model to images and text.

pipeline           UnifiedPipeline: images from prompts, edit, reconstruct, encode, chat
generation_config  GenerationConfig: every setting of an image, its limit and its help
argument_names     the right argument name for a wrong one
image_requests     a prompt and a seed for each image of a call
image_generation   images from a UnifiedModule, a batch of tensors at a time
image_batches      the images of a call in batches, with progress
image_output       ImageOutput: images as Pillow images, arrays or tensors, and their metadata
chat               answers to conversations
chat_messages      chat messages of people and clients
model_inference    ModelInference: for scores, and previews of a training run
pretrained         PretrainedModel: loaded, moved to a device, saved
loading            presets, folders and checkpoints to a ready model
saving             a model to a folder that loading reads
offload            CPU offload: each network on the device only while it runs
quantization       4- and 8-bit weights by bitsandbytes
trusted_config     class paths in model files: ours, and those the user trusts
"""
