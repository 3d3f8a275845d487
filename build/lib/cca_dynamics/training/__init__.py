"""Training: from a recipe to checkpoints and a history table, in loops that survive a kill.

Here live the loops of classifiers and language models, optimisers, augmentation, checkpoints and saved states.
Every room above may import it; it imports `networks`, `data` and the rooms below them.
"""
