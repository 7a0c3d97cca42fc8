"""Names in a data folder."""

MODELS = "models"
"""Folder that holds one folder a model, each named as its model."""

NEW = ".new-"
"""Prefix of a model's folder that is not complete yet. The model's name follows, and `~2`, `~3`, …
where an earlier one could not be removed; a model's name has no `~`."""

DELETED = ".deleted-"
"""Prefix of a model's folder that is being deleted; what follows is as with `NEW`."""

DAMAGED = "damaged"
"""Folder within a model's folder, to which `bptt repair` moves what it takes out."""
