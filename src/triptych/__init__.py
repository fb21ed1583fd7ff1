"""triptych: unified multimodal models in PyTorch Lightning.

Three panels, one picture: understanding (an LLM that reads text and images), generation (learned
queries and a diffusion transformer that makes image features) and decoding (features to pixels).
Importing this package imports no torch; take what you need from its modules.
"""

__version__ = "0.1.0"
