"""Runs the stock Triton Inference Server on this machine, without Docker."""
