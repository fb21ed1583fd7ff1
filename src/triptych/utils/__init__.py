"""Shared helpers that know no model.

errors             UserError, an error in one sentence, and its subclasses
atomic_write       atomic file writes, and locks that end with their process
captions           cleaning of captions
callback_iterator  iterator over the values of a callback-based call
config_nulls       refusal of nulls where a configuration needs a value
config_versions    refusal of configurations of older versions
disk_usage         announcement of writes; refusal of wrong folders and full disks
documents          untrusted YAML, JSON and text files, with limits
finite             refusal of NaN and infinite results by the name of the stage
image_grid         labelled grids of images
image_headers      checks of the structure of image files before decoding
image_modes        conversion of pixels of any mode and depth to 8-bit RGB
image_reader       reader of images: path, bytes, data URL, array, tensor
image_squares      the published square transform, with Pillow only
image_urls         data URLs and links
images             images as tensors: opening, scaling, conversion
limits             ranges of all user-supplied numbers
listing            listing of data set files, and the role of each
parser_errors      readable parser errors
parser_settings    jsonargparse mode and loader
paths              asset:NAME and paths to existing files; presets by name
png_metadata       generation metadata in a PNG text chunk
precision          dtype of parameters; buffers stay float32
pretrained         models and tokenizers of transformers, without their code
prompt_files       prompt files: text, JSON lines, JSON
records            rows of CSV and JSON lines, with errors per row
rng                random draws as pure functions of seed, stream and sample number
shard_writing      writing of WebDataset shards
signals            termination signals, and the processes of a run
standard_streams   closed, full and truncated standard streams
text               encoding, lines and cleaning of user text
tokens             tokenization of text without control tokens
"""
