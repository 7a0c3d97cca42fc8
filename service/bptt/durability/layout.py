"""Names in a data folder."""

MODELS = "models"
"""Folder that holds one folder a model, each named as its model."""

NEW = ".new-"
"""Prefix of a model's folder that is not complete yet."""

DELETED = ".deleted-"
"""Prefix of a model's folder that is being deleted."""

DAMAGED = "damaged"
"""Folder within a model's folder, to which `bptt repair` moves what it takes out."""
