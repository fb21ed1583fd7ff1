"""Plugin that lmms-eval loads at its start, through the entry point group `lmms_eval.models`.

Separate from `model`, since every run of lmms-eval imports this file, for any model.
"""

from lmms_eval.models.registry_v2 import ModelManifest


def manifest() -> ModelManifest:
    """The model `triptych` of `lmms_eval --model triptych`."""
    return ModelManifest("triptych", chat_class_path="triptych.evaluation.lmms_eval.model.Triptych")
