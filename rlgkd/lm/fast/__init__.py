"""The Llama family's forward pass and decoding, written by hand."""
