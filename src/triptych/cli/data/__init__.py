"""`triptych data`: preparation of data before training.

main                table of commands
arguments           flags that the commands share
printing            progress bar, tables and counts of problems
pack                data pack
index               data index
inspect             data inspect
votes               data votes
features            data features: its flags
feature_extraction  data features: extraction by Trainer.predict
shard_images        data features: the images of shards as batches
"""
