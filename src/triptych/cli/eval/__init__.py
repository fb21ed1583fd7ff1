"""`triptych eval`: benchmarks on the command line.

main             table of benchmarks
arguments        flags that benchmarks share
shapes           eval shapes
text_to_image    eval geneval, dpg and wise
generate_images  images of a benchmark in its published layout
fid              eval fid
understanding    eval understanding
compare          eval compare
"""
