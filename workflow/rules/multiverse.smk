localrules:
    multiverse,


rule multiverse:
    """The claims under every reading of what the paper leaves open: one table, and specification curves."""
    input:
        claims_of_readings,
    output:
        table=f"{RESULTS}/multiverse.csv",
        png=report(
            f"{FIGURES}/multiverse.png",
            caption="../cca_dynamics/report/captions/multiverse.rst",
            category="Overview",
            labels={"page": "verdicts under other readings"},
        ),
        pdf=f"{FIGURES}/multiverse.pdf",
        svg=f"{FIGURES}/multiverse.svg",
        curves=directory(f"{FIGURES}/multiverse"),
    log:
        f"{LOGS}/readings/table.log",
    benchmark:
        f"{RESULTS}/readings/benchmarks/multiverse.tsv"
    conda:
        "../../envs/environment.yaml"
    threads: 1
    resources:
        program=PROGRAM,
        mem_mb=1000,
        runtime=10,
    params:
        config=param("multiverse", "config"),
        code=param("multiverse", "code"),
        origin=lambda w: of_family(family.history, *jobs_of_claims(family, readings_of)),
    message:
        "multiverse"
    shell:
        "{resources.program} multiverse {input:q} --config {params.config:q} --table {output.table:q}"
        " --out {output.png:q} {output.pdf:q} {output.svg:q} --curves {output.curves:q} &> {log:q}"
