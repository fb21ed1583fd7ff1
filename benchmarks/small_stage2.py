"""A stage 2 whose steps take milliseconds, for runs that are killed and resumed."""

SMALL_MODEL = {
    "build_decoder": False,
    "generation": {
        "init_args": {
            "num_queries": 2,
            "flow": {"num_noise_samples": 1},
            "dit": {"init_args": {"width": 32, "depth": 1, "heads": 2, "multiple_of": 16}},
        }
    },
}
"""`model` section of a stage 2 whose steps take milliseconds, on top of the tiny preset."""
