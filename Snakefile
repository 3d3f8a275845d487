# `snakemake` makes every figure and claim of the study in config.yaml. The workflow itself is workflow/Snakefile.
configfile: f"{workflow.basedir}/config.yaml"


include: "workflow/Snakefile"


workflow.default_target = "all"  # which an included file does not choose
