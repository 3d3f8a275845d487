"""Datasets and corpora: a name in the config → tensors in one file, with a datasheet.

Here live the registries of both, folders of images and texts, and what size and shape a dataset will have.
Every room above may import it; it imports `config`, `runtime` and `errors`.
"""
