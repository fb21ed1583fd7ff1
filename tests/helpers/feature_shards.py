"""Cached features of a shard folder.

Use it where a test needs features that a run can read.
"""

from builders import unified

from triptych.cli.data.feature_extraction import FeatureFolder
from triptych.cli.predict import Devices
from triptych.data_modules import ShardFolder
from triptych.data_modules.decode import Decoder
from triptych.data_modules.features.cache import default_folder
from triptych.modules.feature_extraction import FeatureModule

BACKEND = Decoder().backend


def make(folder, weights, dtype="fp32", objective="clip", out=None):
    """Features of the shards in `folder` by the small model; returns their folder."""
    module = FeatureModule(unified("inference", weights=weights), objective)
    source = ShardFolder(folder).open()
    identity = {**module.identity(), "image_backend": BACKEND}
    features = FeatureFolder(out or default_folder(source), identity, dtype)
    assert features.extract(source, module, batch_size=4, devices=Devices("cpu"))
    return features.folder
