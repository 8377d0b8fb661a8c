"""rlaif: from a file of principles to preference labels, reward models and better policies."""

__version__ = "0.1.0"
