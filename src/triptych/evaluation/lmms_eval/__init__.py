"""Triptych models inside lmms-eval.

model        the model class of lmms-eval
entry_point  manifest that lmms-eval reads at its start
"""
