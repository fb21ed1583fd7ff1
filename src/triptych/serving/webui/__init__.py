"""Gradio web page: generate, chat, edit, compare.

app            the page: tabs, and its server
launch         checks before the page starts: port, votes, prompts, models
session        state that the tabs share: models, image folder, errors
models         models by name, loaded on first use
generate_tab   images of a prompt
chat_tab       questions about images
edit_tab       edits of an image
compare_tab    two models side by side, with votes
controls       sampling controls
number_inputs  numeric inputs without rounding
gallery        images that appear step by step
progress       progress and cancellation of a call
uploads        images of viewers, decoded by the limits of the HTTP server
votes          votes in a file of JSON lines
style          colors and fonts
"""

import os

# Read when gradio is imported: it sends no telemetry, and does not look for newer versions.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
