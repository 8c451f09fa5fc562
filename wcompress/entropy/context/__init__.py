"""Symbols of trellis-quantised weights ↔ bytes, each under a distribution that follows from the symbols before it.

A weight's scale is told by the weights around it, its row, its column and the VAE prior, through a small network; its
sign, where layers look at images or sound, by its neighbours. Both pick adaptive binary probabilities, several sets of
which are mixed. Everything is integer arithmetic, so a decoder on any machine follows the encoder step by step.

Source: autoregressive hyperpriors (Minnen et al., "Joint autoregressive and hierarchical priors", arXiv 1809.02736);
logistic mixing and adaptive states (Mahoney, "Data Compression Explained", chapter 4).
"""
