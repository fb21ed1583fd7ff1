"""Files of data sets: which of them count, and what each is, for loader and evaluation alike.

names.py    hidden names, suffixes, and the role of a file by its name
folders.py  files, images and captioned samples of a folder
shards.py   *.tar files of a folder or pattern
tar.py      members of a tar archive, and where it is damaged

    folders  files, images and captioned samples of a folder
    names    hidden names, suffixes, and the role of a file by its name
    shards   *.tar files of a folder, glob or brace pattern
    tar      tar archives, untrusted: members, damage, samples
"""
