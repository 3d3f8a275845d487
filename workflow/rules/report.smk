localrules:
    plan,


rule plan:
    """Print what the study computes and what that takes here; makes nothing."""
    log:
        f"{LOGS}/plan.log",
    conda:
        "../../envs/environment.yaml"
    threads: 1
    resources:
        mem_mb=4000,
        runtime=10,
    params:
        config=as_argument(study.config),
        device=study.config["device"],
        cores=workflow.cores,
    message:
        "plan"
    shell:
        "cca-dynamics plan --config {params.config:q} --cores {params.cores} --device {params.device} 2> {log}"


onsuccess:
    # Print the verdicts of what this run made, all of them or those of single targets.
    shell("cca-dynamics verdicts {study.name} --since {STARTED}")
