"""From a network to a version directory in a Triton model repository."""
