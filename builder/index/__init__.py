"""Offline construction of the index: arrays in, the tensors of docs/operators.md out."""
