localrules:
    test_claims,
    plot,
    claims,


rule compute:
    """The table of one result: exactly the data its figure draws."""
    input:
        networks=lambda w: folders_of(w.result, "networks"),
        activations=lambda w: folders_of(w.result, "activations"),
        ablations=lambda w: ablations_of(w.result),
    output:
        table=f"{RESULTS}/{{result}}.parquet",
    log:
        f"{LOGS}/compute/{{result}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/compute-{{result}}.tsv"
    priority: 20  # above training, so that activations are used, and dropped if they are not kept, early
    conda:
        "../../envs/environment.yaml"
    threads: 1
    resources:
        program=PROGRAM,
        mem_mb=2000,
        runtime=60,
        gpu=GPU,
    params:
        options=param("compute", "options"),
        seed=param("compute", "seed"),
        device=param("compute", "device"),
        code=param("compute", "code"),
    message:
        "compute {wildcards.result}"
    shell:
        "{resources.program} compute {wildcards.result} --options {params.options:q} --seed {params.seed}"
        " --networks {input.networks} --activations {input.activations} --ablations {input.ablations} --out {output.table}"
        " --device {params.device} --threads {threads} &> {log}"


rule test_claims:
    """Test the paper's claims on the table of one result."""
    input:
        table=rules.compute.output.table,
    output:
        claims=f"{RESULTS}/claims/{{result}}.csv",
    log:
        f"{LOGS}/test_claims/{{result}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/test_claims-{{result}}.tsv"
    conda:
        "../../envs/environment.yaml"
    threads: 1
    resources:
        program=PROGRAM,
        mem_mb=1000,
        runtime=10,
    params:
        options=options_of_claims,
        seed=param("claims", "seed"),
        code=param("claims", "code"),
    message:
        "test {wildcards.result}"
    shell:
        "{resources.program} claims {wildcards.result} --options {params.options:q} --seed {params.seed}"
        " --table {input.table} --out {output.claims} &> {log}"


rule plot:
    """The figure of one result, for screen, print and editing."""
    input:
        table=rules.compute.output.table,
        claims=rules.test_claims.output.claims,
    output:
        png=report(
            f"{FIGURES}/{{result}}.png",
            caption="../cca_dynamics/report/captions/figure.rst",  # shows params.caption: its name knows no wildcards
            category="Figures",
            labels={"result": "{result}"},
        ),
        pdf=f"{FIGURES}/{{result}}.pdf",
        svg=f"{FIGURES}/{{result}}.svg",
    log:
        f"{LOGS}/plot/{{result}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/plot-{{result}}.tsv"
    conda:
        "../../envs/environment.yaml"
    threads: 1
    resources:
        program=PROGRAM,
        mem_mb=1000,
        runtime=10,
    params:
        options=param("plot", "options"),
        caption=lambda w: caption_of(w.result),
        code=param("plot", "code"),
    message:
        "plot {wildcards.result}"
    shell:
        "{resources.program} plot {wildcards.result} --options {params.options:q} --table {input.table} --claims {input.claims}"
        " --out {output.png} {output.pdf} {output.svg} &> {log}"


rule claims:
    """Every claim of the study with its verdict."""
    input:
        [f"{RESULTS}/claims/{result}.csv" for result in study.targets],
    output:
        report(f"{RESULTS}/claims.csv", caption="../cca_dynamics/report/captions/claims.rst", category="Claims"),
    log:
        f"{LOGS}/claims.log",
    benchmark:
        f"{RESULTS}/benchmarks/claims.tsv"
    conda:
        "../../envs/environment.yaml"
    threads: 1
    resources:
        program=PROGRAM,
        mem_mb=500,
        runtime=5,
    params:
        code=param("merge", "code"),
    message:
        "claims"
    shell:
        "{resources.program} merge {input} --out {output} &> {log}"


# One named target per result, e.g. `snakemake width`.
for name in study.results:

    rule:
        name:
            name
        input:
            figures_of(name),
            f"{RESULTS}/claims/{name}.csv",
        localrule: True
