"""evomerge: find, by evolution, how to merge fine-tuned models into one that beats them all."""

__version__ = "0.1.0"
