"""The version of nearplane; checkpoints name the one that wrote them."""

__version__ = "0.2.0"
