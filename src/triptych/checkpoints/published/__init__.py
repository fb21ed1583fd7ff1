"""Released checkpoints: reading, conversion and export.

convert             published checkpoints to our weight files
export              our weight files to the published layout
key_mapping         names and sizes of the BLIP3-o checkpoints, and ours
reader              a checkpoint, tower or decoder as components of one model
components          components of a published model, under our names and checked
archive             finds and opens weight files of others
siglip_sana         SigLIP 2 and SANA as weight files
tokenizer_files     tokenizer files of a checkpoint
new_tokens          embedding rows for tokens that a stock model lacks
safetensors_stream  safetensors files, tensor by tensor
staging             output folders that are complete or absent
"""
