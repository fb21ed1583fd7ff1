"""The `triptych` command: every command and every flag.

main            entry point, and the table of commands
lightning       fit, validate, test, predict by Lightning's command line
recipes         the files that --preset and --stage stand for
trainer_flags   Trainer flags, reconciled or refused
arguments       flags that several commands share
generate        generate, edit, reconstruct
chat            chat
demo            demo
app             app
serve           serve
eval            eval: a package
data            data: a package
checkpoints     convert, export
parity          parity
pretrain_tiny   pretrain: weights of the tiny preset from scratch
input_files     prompts, messages and edits from arguments and files
jobs            generates the missing images of a command, in batches
output_folder   output folder: done, missing, results.jsonl, grid.png
devices         --devices: items of a command shared out
predict         items shared out by Trainer.predict
cost            GPU-days of a recipe
"""
