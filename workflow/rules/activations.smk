# Activations are the largest files of a study and quickly made again; large studies, and all variants of a study, drop them
# once they are compared.
maybe_temporary = (lambda path: path) if study.config.keep_activations else temp


rule activations:
    """Extract what the results need of each checkpoint: one file per checkpoint and split, one tensor per layer."""
    input:
        data=read_by("activations", "dataset", "corpus"),
        networks=read_by("activations", "train"),
    output:
        activations=maybe_temporary(directory("results/{folder}/activations/{cohort}/{part}")),
    log:
        "logs/{folder}/activations/{cohort}/{part}.log",
    benchmark:
        "results/{folder}/benchmarks/activations-{cohort}-{part}.tsv"
    wildcard_constraints:
        folder=re.escape(study.name),
    conda:
        "../../envs/environment.yaml"
    threads: 1
    resources:
        program=PROGRAM,
        variant=variant,
        mem_mb=memory("activations"),
        runtime=minutes("activations"),
        gpu=GPU,
        jobs_per_gpu=study.config.jobs_per_gpu,
    params:
        requests=param("activations", "requests"),
        device=param("activations", "device"),
        code=param("activations", "code"),
        origin=origin("activations"),
    message:
        "activations {wildcards.cohort} {wildcards.part}{resources.variant}"
    shell:
        "{resources.program} activations --data {input.data:q} --networks {input.networks:q} --requests {params.requests:q}"
        " --out {output.activations:q} --device {params.device} --threads {threads} --jobs-per-gpu {resources.jobs_per_gpu} &> {log:q}"


use rule activations as activations_of_variants with:
    output:
        activations=temp(directory("results/{folder}/activations/{cohort}/{part}")),
    wildcard_constraints:
        folder=VARIANT_FOLDERS,


rule ablation:
    """Measure how the trained networks do with ever more feature maps clamped to zero."""
    input:
        data=read_by("ablation", "dataset"),
        networks=read_by("ablation", "train"),
    output:
        table="results/{folder}/ablation/{cohort}/{part}.parquet",
    log:
        "logs/{folder}/ablation/{cohort}/{part}.log",
    benchmark:
        "results/{folder}/benchmarks/ablation-{cohort}-{part}.tsv"
    conda:
        "../../envs/environment.yaml"
    threads: 1
    resources:
        program=PROGRAM,
        variant=variant,
        mem_mb=memory("ablation"),
        runtime=minutes("ablation"),
        gpu=GPU,
        jobs_per_gpu=study.config.jobs_per_gpu,
        save_minutes=study.config.save_minutes,  # resources, because changing them reruns nothing
        save_steps=study.config.save_steps,
    params:
        request=param("ablation", "request"),
        device=param("ablation", "device"),
        code=param("ablation", "code"),
        origin=origin("ablation"),
    message:
        "ablation {wildcards.cohort} {wildcards.part}{resources.variant}"
    shell:
        "{resources.program} ablation --data {input.data:q} --networks {input.networks:q} --request {params.request:q}"
        " --out {output.table:q} --device {params.device} --threads {threads} --jobs-per-gpu {resources.jobs_per_gpu}"
        " --save-minutes {resources.save_minutes} --save-steps {resources.save_steps} &> {log:q}"
