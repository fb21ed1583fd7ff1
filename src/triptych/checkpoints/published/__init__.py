"""Released checkpoints: reading, conversion and export.

convert             conversion of published checkpoints to our weight files
export              export of our weight files to the published layout
key_mapping         mapping of names and sizes of the BLIP3-o checkpoints
reader              reader of a checkpoint, tower or decoder as components of one model
components          components of a published model, with our names, and checks of them
archive             opening of third-party weight files
siglip_sana         conversion of SigLIP 2 and SANA
tokenizer_files     tokenizer files of a checkpoint
new_tokens          embedding rows for tokens that a stock model lacks
safetensors_stream  safetensors files, tensor by tensor
staging             output folders that are complete or absent
"""
