"""Finding what errors of weights cost, from some inputs that a network is run on: no labels, no training."""
