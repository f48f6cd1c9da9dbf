"""`dreamfleet tune`: each subject's own setting, found by Ray Tune and Optuna.

    recipe + space ──Optuna──► setting ──Tune──► trial: a slot of an engine, read at rungs by judges
                        ▲                                        │
                        └──────────── study.db ◄─────────────────┘
    best two + host ──new seeds──► champion ──► registry

Begin at `command.tune`. What is where: `space` the parameters, `pictures` and `judge` the scores,
`rule` the choice, `study` the truth, `search` the joint with Tune, `trial` and `engine` the work,
`finals` and `champion` the end, `watching` records and table. `run` joins them.
"""
