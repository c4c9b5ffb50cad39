"""claygraph: pictures into clay, through a graph of typed stages."""

__version__ = "0.1.0"
