"""Shared helpers that know no model.

errors             UserError, one sentence for people, and its kinds
atomic_write       atomic file writes, and locks that end with their process
captions           captions, fit for a tokenizer
callback_iterator  a callback-based call as an iterator
config_nulls       nulls where a configuration must name a class
config_versions    refuses configurations of older versions
disk_usage         announces what is about to be written; refuses wrong folders and full disks
documents          YAML, JSON and text files of strangers, bounded and checked
finite             refuses NaN and infinite results by the name of the stage
image_grid         labelled grids of images
image_headers      structure of image files, checked before decoding
image_modes        pixels of any mode and depth as 8-bit RGB
image_reader       the one reader of images: path, bytes, data URL, array, tensor
image_squares      the published square transform, with Pillow only
image_urls         data URLs, as opposed to links
images             images as tensors: opening, scaling, conversion
limits             ranges of all numbers that people give
listing            data-set files: which count, and the role of each
parser_errors      parser errors as sentences
parser_settings    jsonargparse mode and loader
paths              asset:NAME and paths to existing files; presets by name
png_metadata       generation metadata in a PNG text chunk
precision          dtype of parameters; buffers stay float32
pretrained         models and tokenizers of transformers, without their code
prompt_files       prompt files: text, JSON lines, JSON
records            rows of CSV and JSON lines, each by itself
rng                random draws as pure functions of seed, stream and sample number
signals            termination signals, and the processes of a run
standard_streams   closed, full and truncated standard streams
text               encoding, lines and cleaning of user text
tokens             text to token ids, without control tokens
"""
