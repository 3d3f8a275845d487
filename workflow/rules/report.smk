localrules:
    plan,
    crate,
    report,


STAGES = ("data", "train", "activations", "results", "multiverse", "replicates", "report")
SOURCES = [
    workflow.source_path(name) for name in ("../Snakefile", "common.smk", *(f"{stage}.smk" for stage in STAGES))
]  # of the workflow


rule crate:
    """Describe what the finished study consists of and how it was made, with the workflow's own files beside it."""
    input:
        f"{RESULTS}/claims.csv",
        figures_of(*study.targets),
    output:
        crate=f"{RESULTS}/ro-crate-metadata.json",
        workflow=directory(f"{RESULTS}/workflow"),
    log:
        f"{LOGS}/crate.log",
    benchmark:
        f"{RESULTS}/benchmarks/crate.tsv"
    conda:
        "../../envs/environment.yaml"
    threads: 1
    resources:
        program=PROGRAM,
        mem_mb=1000,
        runtime=60,
        sources=shlex.join(SOURCES),
    params:
        config=param("crate", "config"),
        protocol=param("crate", "protocol"),
        code=param("crate", "code"),
        origin=origin("crate"),
    message:
        "crate"
    shell:
        "{resources.program} crate --config {params.config:q} --workflow {resources.sources} --protocol {params.protocol:q}"
        " --out {output.crate:q} &> {log:q}"


rule report:
    """Put verdicts, figures, data, config, runtime and provenance on one page."""
    input:
        f"{RESULTS}/claims.csv",
        rules.crate.output.crate,
        figures_of(*study.targets),
    output:
        report(
            f"{FIGURES}/report.html",
            caption="../cca_dynamics/report/captions/report.rst",
            category="Overview",
            labels={"page": "verdicts and figures"},
        ),
    log:
        f"{LOGS}/report.log",
    benchmark:
        f"{RESULTS}/benchmarks/report.tsv"
    conda:
        "../../envs/environment.yaml"
    threads: 1
    resources:
        program=PROGRAM,
        mem_mb=1000,
        runtime=10,
    params:
        config=param("report", "config"),
        code=param("report", "code"),
        origin=origin("report"),
        texts=param("report", "texts"),
        replicates=lambda w: checksum_if_made(f"{RESULTS}/replicates.csv"),
        readings=lambda w: checksum_if_made(f"{RESULTS}/multiverse.csv"),
    message:
        "report"
    shell:
        "{resources.program} report --config {params.config:q} --out {output:q} &> {log:q}"


rule plan:
    """Print what the study computes and what that takes here; makes nothing."""
    log:
        f"{LOGS}/plan.log",
    conda:
        "../../envs/environment.yaml"
    threads: 1
    resources:
        program=PROGRAM,
        mem_mb=4000,
        runtime=10,
    params:
        config=lambda w: as_argument(study.config),
        device=study.config.device,
        cores=workflow.cores,
    message:
        "plan"
    shell:
        "{resources.program} plan --whole-config {params.config:q} --cores {params.cores} --device {params.device} 2> {log:q}"


onsuccess:
    # Print the verdicts of what this run made, all of them or those of single targets.
    shell(
        "{PROGRAM} verdicts {study.name} --since {STARTED} --note {NOTES:q} --note-of-replicates {NOTES_OF_REPLICATES:q}"
    )
