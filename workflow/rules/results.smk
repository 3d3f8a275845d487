localrules:
    test_claims,
    plot,
    claims,


rule compute:
    """The table of one result: exactly the data its figure draws."""
    input:
        networks=read_by("compute", "train"),
        activations=read_by("compute", "activations"),
        ablations=read_by("compute", "ablation"),
    output:
        table="results/{folder}/{result}.parquet",
    log:
        "logs/{folder}/compute/{result}.log",
    benchmark:
        "results/{folder}/benchmarks/compute-{result}.tsv"
    priority: 20  # above training, so that activations are used, and dropped if they are not kept, early
    conda:
        "../../envs/environment.yaml"
    threads: 1
    resources:
        program=PROGRAM,
        variant=variant,
        mem_mb=memory("compute"),
        runtime=minutes("compute"),
        gpu=GPU,
        jobs_per_gpu=study.config.jobs_per_gpu,
    params:
        options=param("compute", "options"),
        seed=param("compute", "seed"),
        device=param("compute", "device"),
        code=param("compute", "code"),
        origin=origin("compute"),
        # The paths of all parts, which may be a thousand, in few words. Derived from the input, they rerun nothing.
        networks=lambda w, input: abbreviated(input.networks),
        activations=lambda w, input: abbreviated(input.activations),
        ablations=lambda w, input: abbreviated(input.ablations),
    message:
        "compute {wildcards.result}{resources.variant}"
    shell:
        "{resources.program} compute {wildcards.result} --options {params.options:q} --seed {params.seed}"
        " --networks {params.networks:q} --activations {params.activations:q} --ablations {params.ablations:q}"
        " --out {output.table:q} --device {params.device} --threads {threads} --jobs-per-gpu {resources.jobs_per_gpu} &> {log:q}"


rule test_claims:
    """Test the paper's claims on the table of one result."""
    input:
        table=read_by("claims", "compute"),
    output:
        claims="results/{folder}/claims/{result}.csv",
    log:
        "logs/{folder}/test_claims/{result}.log",
    benchmark:
        "results/{folder}/benchmarks/test_claims-{result}.tsv"
    conda:
        "../../envs/environment.yaml"
    threads: 1
    resources:
        program=PROGRAM,
        variant=variant,
        mem_mb=1000,
        runtime=10,
    params:
        options=options_of_claims,
        seed=param("claims", "seed"),
        code=param("claims", "code"),
        origin=origin("claims"),
    message:
        "test {wildcards.result}{resources.variant}"
    shell:
        "{resources.program} claims {wildcards.result} --options {params.options:q} --seed {params.seed}"
        " --table {input.table:q} --out {output.claims:q} &> {log:q}"


rule plot:
    """The figure of one result, for screen, print and editing."""
    input:
        table=read_by("plot", "compute"),
        claims=read_by("plot", "claims"),
    output:
        png=report(
            "figures/{folder}/{result}.png",
            caption="../cca_dynamics/report/captions/figure.rst",  # shows params.caption: its name knows no wildcards
            category="Figures",
            labels={"result": "{result}"},
        ),
        pdf="figures/{folder}/{result}.pdf",
        svg="figures/{folder}/{result}.svg",
    log:
        "logs/{folder}/plot/{result}.log",
    benchmark:
        "results/{folder}/benchmarks/plot-{result}.tsv"
    conda:
        "../../envs/environment.yaml"
    threads: 1
    resources:
        program=PROGRAM,
        variant=variant,
        mem_mb=1000,
        runtime=10,
    params:
        options=param("plot", "options"),
        caption=lambda w: caption_of(w.result),
        code=param("plot", "code"),
        origin=origin("plot"),
    message:
        "plot {wildcards.result}{resources.variant}"
    shell:
        "{resources.program} plot {wildcards.result} --options {params.options:q} --table {input.table:q} --claims {input.claims:q}"
        " --out {output.png:q} {output.pdf:q} {output.svg:q} &> {log:q}"


rule claims:
    """Every claim of the study with its verdict."""
    input:
        read_by("merge", "claims"),
    output:
        report("results/{folder}/claims.csv", caption="../cca_dynamics/report/captions/claims.rst", category="Claims"),
    log:
        "logs/{folder}/claims.log",
    benchmark:
        "results/{folder}/benchmarks/claims.tsv"
    conda:
        "../../envs/environment.yaml"
    threads: 1
    resources:
        program=PROGRAM,
        variant=variant,
        mem_mb=500,
        runtime=5,
    params:
        code=param("merge", "code"),
        origin=origin("merge"),
    message:
        "claims{resources.variant}"
    shell:
        "{resources.program} merge {input:q} --out {output:q} &> {log:q}"


# One named target per result, e.g. `snakemake width`.
for name in study.results:

    rule:
        name:
            name
        input:
            figures_of(name),
            f"{RESULTS}/claims/{name}.csv",
        localrule: True
