"""Judges: models that answer questions about images.

base        the interface, and a cache of answers
openai_api  judges behind OpenAI's HTTP interface
local       judges that compute here
hub         judges from a folder or the hub
"""
