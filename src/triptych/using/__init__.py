"""Using a model from the command line: generate, chat, edit, reconstruct.

What is asked is read and checked before torch is imported and the model loaded.
"""
