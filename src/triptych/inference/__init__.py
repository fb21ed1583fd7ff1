"""Inference: from a trained model to images and text.

pipeline           UnifiedPipeline: generate, edit, reconstruct, encode, chat
generation_config  GenerationConfig: all generation settings, with limits and help
argument_names     corrections of wrong argument names
image_requests     prompt and seed of each image of a call
image_generation   images from a UnifiedModule, one batch of tensors at a time
edit_source        source images of edits for the generator, where it sees them
image_batches      images of a call in batches, with progress
best_of            several candidates of each image, of which a ranker keeps one
model_ranker       the model as its own ranker
image_output       ImageOutput: Pillow images, arrays or tensors, and their metadata
chat               answers to conversations
chat_messages      parsing of chat messages
model_inference    ModelInference: for scores and previews of a training run
pretrained         PretrainedModel: loading, moving to a device, saving
loading            presets, folders and checkpoints to a ready model
saving             writes a model to a folder that loading reads
offload            CPU offload: each network on the device only while it runs
quantization       4- and 8-bit weights by bitsandbytes
trusted_config     checks of class paths in model files
"""
