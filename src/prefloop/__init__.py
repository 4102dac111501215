"""prefloop: the whole loop of learning from human preferences, from data to proof."""

__version__ = "0.1.0"
