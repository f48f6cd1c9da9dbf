"""How the shipped weights are made: the embedded base and its evaluators, trained on the world."""
