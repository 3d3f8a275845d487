# Replication of Morcos, Raghu & Bengio (NeurIPS 2018). `snakemake` makes every figure and claim of the study in config.yaml.
from snakemake.utils import min_version

min_version("9.0")


configfile: f"{workflow.basedir}/config.yaml"


include: "workflow/rules/common.smk"
include: "workflow/rules/data.smk"
include: "workflow/rules/train.smk"
include: "workflow/rules/activations.smk"
include: "workflow/rules/results.smk"
include: "workflow/rules/report.smk"


rule all:
    default_target: True
    input:
        rules.claims.output,
        rules.manifest.output,
        figures_of(*study.targets),
