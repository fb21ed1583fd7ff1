"""`triptych eval`: a benchmark each, from the command line to a report.

What is asked is read and checked before torch is imported, and before anything long begins.
"""
