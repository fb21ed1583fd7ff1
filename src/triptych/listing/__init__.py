"""Files of data sets: which of them count, and what each is, for loader and evaluation alike.

names.py     hidden names, suffixes, and the role of a file by its name
folders.py   files, images and captioned samples of a folder
tables.py    a table of captions in a folder of images
records.py   records of tables and JSON lines, one by one
captions.py  captions of a sample, and whether they can be used
shards.py    *.tar files of a folder or pattern
tar.py       members of a tar archive, and where it is damaged
"""
