"""Features made for a test."""

from builders import unified

from triptych.cli.data.feature_extraction import FeatureExtraction
from triptych.cli.predict import Devices
from triptych.data_modules import ShardFolder
from triptych.data_modules.decode import Decoder
from triptych.data_modules.features.cache import home
from triptych.modules.feature_extraction import FeatureModule

WAY = Decoder().way


def make(folder, weights, dtype="fp32", objective="clip", out=None):
    """Features of the shards in `folder` by the small model; returns their folder."""
    module = FeatureModule(unified("inference", weights=weights), objective)
    source = ShardFolder(folder).open()
    identity = {**module.identity(), "image_backend": WAY}
    extraction = FeatureExtraction(out or home(source), identity, dtype)
    assert extraction.extract(source, module, batch_size=4, devices=Devices("cpu"))
    return extraction.folder
