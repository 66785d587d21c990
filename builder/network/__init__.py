"""The served network. Everything here is scripted by TorchScript.

TorchScript reads the annotations of class attributes as objects, so these modules do without `from __future__ import
annotations`.
"""
