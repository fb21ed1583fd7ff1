"""The `triptych` command: every command and every flag.

main            entry point, and the table of commands
commands        demo, app, convert, export, parity, pretrain
lightning       fit, validate, test, predict by Lightning's command line
trainer_flags   Trainer flags, reconciled or refused
arguments       flags that several commands share
generate        generate, edit, reconstruct
chat            chat
data            data pack, index, inspect
data_features   data features
serve           serve
eval            eval
input_files     prompts, messages and edits from arguments and files
jobs            generates the missing images of a command, in batches
output_folder   output folder: done, missing, results.jsonl, grid.png
workers         one command as several processes
cost            GPU-days of a recipe
pretrain_tiny   weights of the tiny preset from scratch
"""
