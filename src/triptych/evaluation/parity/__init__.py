"""Parity with the published code: its recorded inputs and outputs, through our classes.

A folder of cases holds what the published BLIP3-o computed, in float32 on one thread, at tiny size
with random weights. Each family of cases has a file here that runs its inputs through the
classes which train and generate, and reports the error of every recorded quantity. Sizes are
read only from the case.

    report      runs every case of a folder
    recorded    a recorded case on disk
    checks      distances and tolerances
    checkpoint  the checkpoint that cases share
    loading     published tensors into our modules
    data        captions and images to ids and pixels
    dit         DiT forward and gradients
    eva_clip    EVA-CLIP features
    decoder     the pixel decoder
    chat        greedy answers
    seeing      images for the language model
    training    one training step
    generating  sampling
"""

from triptych.evaluation.parity.report import ParityReport, run_cases

__all__ = ["ParityReport", "run_cases"]
