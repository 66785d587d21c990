"""Client of a SilverTriton artifact on a Triton Inference Server. Needs numpy and tritonclient, never torch."""
