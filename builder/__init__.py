"""The offline side of SilverTriton: data, training, index, network, export, serving, evaluation."""

import os

# Read when torch brings OpenMP. By default its threads spin while they wait for each other: on a machine that others
# use too, one then spins away the time that another needs, and work takes ten to a hundred times as long.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
