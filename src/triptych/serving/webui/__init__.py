"""Gradio web page: generate, chat, edit, compare.

app            the page and its server
launch         checks before the page starts: port, votes, prompts, models
session        state that the tabs share: models, image folder, errors
models         models by name, loaded at first use
generate_tab   tab: images of a prompt
chat_tab       tab: questions about images
edit_tab       tabs: editing and reconstruction of an image
compare_tab    tab: two models side by side, with votes
controls       sampling controls
number_inputs  numeric inputs without rounding
gallery        images with previews
progress       progress and cancellation of a call
uploads        decoding of uploaded images with the limits of the HTTP server
votes          votes in a file of JSON lines
pairs          pairs of images from votes, as training data
style          colors and fonts
"""

import os

# Read when gradio is imported: no telemetry, and no check for newer versions.
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
