"""The `triptych` command: all commands and their flags.

Commands build argparse parsers, since functions under jsonargparse need a value after `--ema`, take
no positionals between flags, and report a wrong value as a paragraph about parser keys.

main            entry point, and table of commands
lightning       fit, validate, test, predict by Lightning's command line
recipes         expansion of --preset and --stage to files
trainer_flags   validation and reconciliation of Trainer flags
arguments       flags that several commands share
generate        generate, edit, reconstruct
chat            chat
answer_images   files of the images in answers of chat
demo            demo
app             app
serve           serve
eval            eval: a package
data            data: a package
checkpoints     convert, export
plan            plan: a package
parity          parity
pretrain_tiny   pretrain: training of the tiny preset from scratch
input_files     prompts, messages and edits from arguments and files
jobs            image jobs of a command, in batches
output_folder   output folder: finished images, results.jsonl, grid.png
devices         --devices: items of a command shared over devices
predict         sharing of items by Trainer.predict
"""
