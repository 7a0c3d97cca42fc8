"""Names in a data folder."""

MODELS = "models"
"""Folder of the models' folders, each named as its model."""

NEW = ".new-"
"""Begins the name of a model's folder that is not whole yet."""

DELETED = ".deleted-"
"""Begins the name of a model's folder that is being deleted."""

DAMAGED = "damaged"
"""Folder in a model's, to which `bptt repair` moves what it takes out."""
