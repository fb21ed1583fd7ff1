"""The shapes world: a small synthetic data set with an exact checker, for tests and tutorials."""
