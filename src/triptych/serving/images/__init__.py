"""Images of clients and viewers, decoded in worker processes; shared by http and webui.

image_input    limits of images from outside
image_decoder  pool of worker processes that decode images
decode_worker  the worker process
sizes          image sizes of a model
"""
