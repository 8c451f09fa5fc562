"""Tensors that no trellis quantises: kept bit for bit or nearly."""
