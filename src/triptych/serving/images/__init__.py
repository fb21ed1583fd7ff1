"""Images of clients and viewers, decoded in processes that can be killed; http and webui share it.

image_input    limits of images from outside
image_decoder  decoding processes and the requests that wait for one
decode_worker  the decoding process
sizes          sizes of a model's images
"""
