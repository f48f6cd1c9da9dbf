"""DreamBooth (arXiv 2208.12242), LoRA or full, with prior preservation and SuDe (arXiv
2403.06775).
"""
