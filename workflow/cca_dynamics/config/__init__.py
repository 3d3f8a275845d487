"""The config files of a study, their schema, and the types that travel between the stages of the workflow.

Here live the models of every config key, cohorts, recipes and requests; a result's own options live in its module.
Every room above may import it; it imports `runtime` and `errors`, and nothing heavy.
"""
