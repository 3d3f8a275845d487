"""Replication of Morcos, Raghu & Bengio, "Insights on representational similarity in neural networks with
canonical correlation" (NeurIPS 2018).

The package is what the Snakemake workflow runs: `datasets` → `training` → `activations` → `similarity` → `results`.
Of these, `cca_dynamics.similarity` is of use on its own.
"""
