"""Data sets as samples by number.

base          DataSource, the interface; BadSample
webdataset    local WebDataset shards
image_folder  a folder of captioned images
llava         conversation files in LLaVA's layout
prompts       captions without images: a file of prompts, captions of the shapes world
tables        CSV, JSON lines, Parquet, Hugging Face datasets
detect        detects the format of a path
members       samples that are files of one key
jsonl_index   JSON lines by number
safe_read     reads files inside the folder of a data set only
"""
