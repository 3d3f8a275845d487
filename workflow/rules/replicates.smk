localrules:
    replicates,


rule replicates:
    """The study under fresh seeds: every verdict of each of them, in one table and one figure."""
    input:
        claims_of_replicates,
    output:
        table=f"{RESULTS}/replicates.csv",
        png=report(
            f"{FIGURES}/replicates.png",
            caption="../cca_dynamics/report/captions/replicates.rst",
            category="Overview",
            labels={"page": "verdicts under fresh seeds"},
        ),
        pdf=f"{FIGURES}/replicates.pdf",
        svg=f"{FIGURES}/replicates.svg",
    log:
        f"{LOGS}/replicates/table.log",
    benchmark:
        f"{RESULTS}/replicates/benchmarks/replicates.tsv"
    conda:
        "../../envs/environment.yaml"
    threads: 1
    resources:
        program=PROGRAM,
        mem_mb=1000,
        runtime=10,
    params:
        seeds=" ".join(map(str, fresh)),
        code=param("replicates", "code"),
        origin=lambda w: of_family(family.history, *REPLICATES),
    message:
        "replicates"
    shell:
        "{resources.program} replicates {input:q} --seeds {params.seeds} --table {output.table:q}"
        " --out {output.png:q} {output.pdf:q} {output.svg:q} &> {log:q}"
