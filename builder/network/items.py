"""The feature values of items by row, carried in the artifact beside the index."""

from torch import Tensor, nn


class ItemFeatures(nn.Module):
    """Forward columns (`builder.index.forward`) as buffers, `FEATURE__keys`, `FEATURE__codes` and so on.

    The search never reads them; they say what an item of a snapshot was, to `builder inspect --item` now and to
    whatever scores items by their features.
    """

    def __init__(self, columns: dict[str, Tensor]) -> None:
        super().__init__()
        for name, tensor in columns.items():
            self.register_buffer(name.replace(".", "__"), tensor)
