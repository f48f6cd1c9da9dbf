"""Stable Diffusion 2.x: as 1.x with OpenCLIP's text encoder, whose folder holds the layers up to
the last but one, and linear layers around the transformers.

The 512-pixel model predicts the noise, the 768-pixel one v; the folder's scheduler says which.
"""

from __future__ import annotations

from dataclasses import replace

from dreamfleet.bases import sd1

FAMILY = replace(sd1.FAMILY, name="sd2")
