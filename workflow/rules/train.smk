rule train:
    """Train one part of a cohort in lockstep: checkpoints, history table, recipe."""
    input:
        data=read_by("train", "dataset", "corpus"),
    output:
        networks=directory("results/{folder}/networks/{cohort}/{part}"),
    log:
        "logs/{folder}/train/{cohort}/{part}.log",
    benchmark:
        "results/{folder}/benchmarks/train-{cohort}-{part}.tsv"
    priority: 10
    conda:
        "../../envs/environment.yaml"
    threads: 1
    resources:
        program=PROGRAM,
        variant=variant,
        mem_mb=memory("train"),
        runtime=minutes("train"),
        gpu=GPU,
        jobs_per_gpu=study.config.jobs_per_gpu,
        save_minutes=study.config.save_minutes,  # resources, because changing them reruns nothing
        save_steps=study.config.save_steps,
    params:
        recipe=param("train", "recipe"),
        device=param("train", "device"),
        code=param("train", "code"),
        origin=origin("train"),
    message:
        "train {wildcards.cohort} {wildcards.part}{resources.variant}"
    shell:
        "{resources.program} train --data {input.data:q} --recipe {params.recipe:q} --out {output.networks:q}"
        " --device {params.device} --threads {threads} --jobs-per-gpu {resources.jobs_per_gpu}"
        " --save-minutes {resources.save_minutes} --save-steps {resources.save_steps} &> {log:q}"
