"""Representations: from checkpoints to activations, and to accuracy without some feature maps.

Here live the extraction of classifiers' layers and of language models' hidden states, and cumulative ablation.
Every room above may import it; it imports `training` and the rooms below it.
"""
