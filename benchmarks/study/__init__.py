"""The published study in small: which representation, which objective, which order of training.

    make study                      # hours; the same command goes on where it was stopped
    make study ARGS="--plan"        # what would run, and for how long

`plan` says what is trained, `runs` trains it by `triptych fit`, `scores` measures one run,
`reading` compares, `page` shows.
"""
