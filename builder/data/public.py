"""The public datasets there are loaders for."""

from builder.data.gowalla import gowalla
from builder.data.movielens import movielens_100k

__all__ = ["gowalla", "movielens_100k"]
