"""Which of two adapters do people prefer? Paired, blinded comparisons, as in DreamBooth's study
(arXiv 2208.12242, section 4.2: 72 people, 25 questions each).

    pairs    pictures of the same subject, prompt and noise from two output folders
    votes    SQLite: one row per person, pair and question
    shares   preference shares with intervals
    pages    server-rendered pages; no script, nothing fetched from elsewhere
"""

from dreamfleet.evaluation.preference.pages import preference_app, serve
from dreamfleet.evaluation.preference.pairs import Pair, load_pairs
from dreamfleet.evaluation.preference.shares import Share, preference_shares, share_lines
from dreamfleet.evaluation.preference.votes import QUESTIONS, Votes

__all__ = [
    "QUESTIONS",
    "Pair",
    "Share",
    "Votes",
    "load_pairs",
    "preference_app",
    "preference_shares",
    "serve",
    "share_lines",
]
