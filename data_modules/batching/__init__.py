"""Samples to a Batch.

collate          joins samples to a Batch, bad ones replaced
tasks            prompts, labels and images of each task
messages         conversations with images in any message
clean_text       captions of a sample
caption_dropout  words left out of captions in training
bad_samples      counts unusable samples; ends a run with too many
accumulation     counts the elements of an optimizer step ahead
"""
