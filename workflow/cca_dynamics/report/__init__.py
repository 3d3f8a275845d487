"""From a finished study to its readers: a page, a table on the terminal, figures/reference/, and a crate to verify
and archive.

Here live the captions of the figures and the page's template, too.
Only `cli` and the workflow's rules import it; it imports `study` and the rooms below it.
"""
