"""dreamfleet: a few photos of one subject in, a measured adapter of a text-to-image model out."""

__version__ = "0.1.0"
