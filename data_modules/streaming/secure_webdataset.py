"""webdataset in its secure mode, in which nothing runs a shell or unpickles.

The mode also keeps webdataset from opening local files by itself, so this module is imported only
when it is used.
"""

import os

os.environ["WDS_SECURE"] = "1"  # read by webdataset when it is first imported

import webdataset
from webdataset.filters import shuffle
from webdataset.shardlists import expand_urls

webdataset.utils.enforce_security = True  # for a webdataset that was imported before

__all__ = ["expand_urls", "shuffle"]
