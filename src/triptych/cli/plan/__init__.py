"""`triptych plan`: memory, time and traffic of a training run, before it starts.

main      the command and its flags
request   what is planned: model, batch, precision, strategy and card
cost      FLOPs and GPU-days of a recipe
memory    peaks of the ways to run a stage, and the largest batch that fits
report    the plan as text and JSON
fit       the plan of a fit on GPUs, printed before weights are loaded
"""
