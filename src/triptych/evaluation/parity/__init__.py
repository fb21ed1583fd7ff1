"""Parity with the published code: its recorded inputs and outputs against our classes.

A folder of cases contains values computed by the published BLIP3-o, in float32 on one thread, at
tiny size with random weights. Each family of cases has a file here that runs the recorded inputs
through the classes that train and generate, and reports the error of every recorded quantity.
Sizes are read from the cases.

    report      runs every case of a folder
    recorded    recorded cases on disk
    checks      errors and tolerances
    checkpoint  checkpoint shared by cases
    loading     loads published tensors into our modules
    data        token ids and pixels from captions and images
    dit         DiT forward and gradients
    eva_clip    EVA-CLIP features
    decoder     pixel decoder
    chat        greedy answers
    seeing      image inputs of the language model
    training    one training step
    generating  sampling
"""

from triptych.evaluation.parity.report import ParityReport, run_cases

__all__ = ["ParityReport", "run_cases"]
