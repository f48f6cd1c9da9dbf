"""Studies: recipes of arms that are trained from the same noise, scored alike, and compared.

recipe     a study as data, read from YAML
settings   what earlier steps of docs/protocol.md settled
plan       arms, configurations and prompts of a study
fields     where it takes place: the drawn world, or photographs
run        train, draw and score what is missing; resumable
store      files of trainings, shared by all studies of an output folder
tables     one row per subject, arm and rung
claims     what holds: paired tests, Holm, the primary claim
figures    charts and picture sheets
report     results of a study, and what of them is committed
page       the measured parts of docs/evidence.md
command    the above as commands
"""
