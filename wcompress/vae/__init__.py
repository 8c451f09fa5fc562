"""The variational autoencoder: networks, objective and training (torch), and the exact decoder (numpy only).

Nothing is imported here: unpacking needs `wcompress.vae.integer` and must not load training code.
"""
