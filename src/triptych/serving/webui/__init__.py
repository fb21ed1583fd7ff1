"""The web page of `triptych app`: generate, chat, edit, compare. Gradio draws it."""

import os

# Read when gradio is imported: it tells nobody that it runs, and asks nobody for newer versions.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
