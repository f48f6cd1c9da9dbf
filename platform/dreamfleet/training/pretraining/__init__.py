"""Training the embedded base and its evaluators on the synthetic world: how the shipped weights are made."""
