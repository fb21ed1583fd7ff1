"""Serving: a model over HTTP and on a web page, which do not know each other.

asgi    server process and middleware, shared by both
images  decoding of images from outside, shared by both
http    OpenAI-compatible HTTP server
webui   Gradio web page
"""
