localrules:
    dataset,
    corpus,


rule dataset:
    """Materialise the dataset once, true and permuted labels side by side."""
    output:
        tensors="results/{folder}/data/dataset.safetensors",
        datasheet="results/{folder}/data/datasheet.json",
    log:
        "logs/{folder}/dataset.log",
    benchmark:
        "results/{folder}/benchmarks/dataset.tsv"
    conda:
        "../../envs/environment.yaml"
    threads: 1
    resources:
        program=PROGRAM,
        variant=variant,
        mem_mb=memory("dataset"),
        runtime=minutes("dataset"),
        options=dataset_options,  # all of them; the params lack those that only say where files lie
    params:
        options=param("dataset", "options"),
        seed=param("dataset", "seed"),
        code=param("dataset", "code"),
    message:
        "dataset{resources.variant}"
    shell:
        "{resources.program} dataset --options {resources.options:q} --seed {params.seed}"
        " --tensors {output.tensors:q} --datasheet {output.datasheet:q} &> {log:q}"


rule corpus:
    """Materialise the text that language models read."""
    output:
        tensors="results/{folder}/data/corpus.safetensors",
        datasheet="results/{folder}/data/corpus.json",
    log:
        "logs/{folder}/corpus.log",
    benchmark:
        "results/{folder}/benchmarks/corpus.tsv"
    conda:
        "../../envs/environment.yaml"
    threads: 1
    resources:
        program=PROGRAM,
        variant=variant,
        mem_mb=memory("corpus"),
        runtime=minutes("corpus"),
        train_tokens=tokens("train"),  # resources, because changing them reruns nothing
        valid_tokens=tokens("valid"),
    params:
        options=param("corpus", "options"),
        code=param("corpus", "code"),
    message:
        "corpus{resources.variant}"
    shell:
        "{resources.program} corpus --options {params.options:q} --tensors {output.tensors:q} --datasheet {output.datasheet:q}"
        " --train-tokens {resources.train_tokens} --valid-tokens {resources.valid_tokens} &> {log:q}"
