"""What is drawn and asked in an evaluation: prompts as data files in `prompts/`, read by name.

dreambench     30 subjects, 25 prompts for objects or living things (arXiv 2208.12242)
attributes     five states or materials per class, none of which the photos need show (ours)
applications   recontextualisation, views, art styles, materials, species crossing (DreamBooth's)
worldbench     every state and scene of a drawn individual but its photo's (docs/protocol.md)
"""

from dreamfleet.evaluation.protocols.dreambench import DreamBenchSubject, dreambench_subjects
from dreamfleet.evaluation.protocols.protocol import (
    ADAPTER_PROTOCOLS,
    Ask,
    asks_for,
    images_per_prompt,
    prompts_hash,
)

__all__ = [
    "ADAPTER_PROTOCOLS",
    "Ask",
    "DreamBenchSubject",
    "asks_for",
    "dreambench_subjects",
    "images_per_prompt",
    "prompts_hash",
]
