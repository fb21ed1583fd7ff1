"""Metrics of sets of images.

fid               FID and KID, overall and by category
inception         the Inception network of FID
feature_space     feature spaces in which images are compared
feature_distance  FID and KID of a model in training, by its own encoder
clip_score        CLIP score
diversity         diversity of the images of one prompt
"""
