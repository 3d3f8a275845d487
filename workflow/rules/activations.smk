# Activations are the largest files of a study and quickly made again; large studies drop them once they are compared.
maybe_temporary = (lambda path: path) if study.config.keep_activations else temp


rule activations:
    """Extract what the results need of each checkpoint: one file per checkpoint and split, one tensor per layer."""
    input:
        data=data_of,
        networks=rules.train.output.networks,
    output:
        activations=maybe_temporary(directory(f"{RESULTS}/activations/{{cohort}}/{{part}}")),
    log:
        f"{LOGS}/activations/{{cohort}}/{{part}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/activations-{{cohort}}-{{part}}.tsv"
    conda:
        "../../envs/environment.yaml"
    threads: 1
    resources:
        program=PROGRAM,
        mem_mb=2000,
        runtime=60,
        gpu=GPU,
    params:
        requests=param("activations", "requests"),
        device=param("activations", "device"),
        code=param("activations", "code"),
    message:
        "activations {wildcards.cohort} {wildcards.part}"
    shell:
        "{resources.program} activations --data {input.data} --networks {input.networks} --requests {params.requests:q}"
        " --out {output.activations} --device {params.device} --threads {threads} &> {log}"


rule ablation:
    """Measure how the trained networks do with ever more feature maps clamped to zero."""
    input:
        data=rules.dataset.output.tensors,
        networks=rules.train.output.networks,
    output:
        table=f"{RESULTS}/ablation/{{cohort}}/{{part}}.parquet",
    log:
        f"{LOGS}/ablation/{{cohort}}/{{part}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/ablation-{{cohort}}-{{part}}.tsv"
    conda:
        "../../envs/environment.yaml"
    threads: 1
    resources:
        program=PROGRAM,
        mem_mb=2000,
        runtime=120,
        gpu=GPU,
        save_minutes=study.config.save_minutes,  # resources, because changing them reruns nothing
        save_steps=study.config.save_steps,
    params:
        request=param("ablation", "request"),
        device=param("ablation", "device"),
        code=param("ablation", "code"),
    message:
        "ablation {wildcards.cohort} {wildcards.part}"
    shell:
        "{resources.program} ablation --data {input.data} --networks {input.networks} --request {params.request:q}"
        " --out {output.table} --device {params.device} --threads {threads}"
        " --save-minutes {resources.save_minutes} --save-steps {resources.save_steps} &> {log}"
