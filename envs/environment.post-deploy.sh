#!/usr/bin/env bash
# `snakemake --sdm conda` runs this in the environment it made from environment.yaml: the workflow's own package goes in, too.
# From another working directory, say where the working copy is: CCA_DYNAMICS=/path/to/cca-dynamics.
set -euo pipefail
copy="${CCA_DYNAMICS:-$PWD}"
test -f "$copy/pyproject.toml" || { echo "error: no pyproject.toml in $copy; set CCA_DYNAMICS to the working copy" >&2; exit 1; }
python -m pip install --no-deps --no-build-isolation --editable "$copy"
