"""Order of samples.

batch_sampler   samples of each global batch: mixing, epochs and length buckets joined
epoch_shuffle   order of an epoch, computed at any position
epochs          no batch holds a sample twice across epoch borders
mixing          data sets by weight
length_buckets  batches of samples of similar length
step_dataset    datasets and samplers of a DataLoader
"""
