"""Replication of Morcos, Raghu & Bengio, "Insights on representational similarity in neural networks with canonical
correlation" (NeurIPS 2018): the code behind the Snakemake workflow.

At the top: `cli` (one subcommand per stage), `study` (a validated config and the cohorts it needs), `cost` (what a
study takes, before it runs) and `errors` (those that the user can mend). Each room below says what lives in it.
"""

__version__ = "0.1.0"
