"""Names in a data folder."""

MODELS = "models"
"""Folder of the models' folders, each named as its model."""

NEW = ".new-"
"""Begins the name of a model's folder that is not whole yet. The model's name follows, and `~2`,
`~3`, … where an earlier one could not be removed; a model's name has no `~`."""

DELETED = ".deleted-"
"""Begins the name of a model's folder that is being deleted; what follows is as with `NEW`."""

DAMAGED = "damaged"
"""Folder in a model's, to which `bptt repair` moves what it takes out."""
