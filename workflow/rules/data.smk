localrules:
    dataset,
    corpus,


rule dataset:
    """Materialise the dataset once, true and permuted labels side by side."""
    output:
        tensors=f"{RESULTS}/data/dataset.safetensors",
        datasheet=f"{RESULTS}/data/datasheet.json",
    log:
        f"{LOGS}/dataset.log",
    benchmark:
        f"{RESULTS}/benchmarks/dataset.tsv"
    conda:
        "../../envs/environment.yaml"
    threads: 1
    resources:
        program=PROGRAM,
        mem_mb=1000,
        runtime=10,
        options=as_argument(study.config.dataset),  # all of them; the params lack those that only say where files lie
    params:
        options=param("dataset", "options"),
        seed=param("dataset", "seed"),
        code=param("dataset", "code"),
    message:
        "dataset"
    shell:
        "{resources.program} dataset --options {resources.options:q} --seed {params.seed}"
        " --tensors {output.tensors} --datasheet {output.datasheet} &> {log}"


rule corpus:
    """Materialise the text that language models read."""
    output:
        tensors=f"{RESULTS}/data/corpus.safetensors",
        datasheet=f"{RESULTS}/data/corpus.json",
    log:
        f"{LOGS}/corpus.log",
    benchmark:
        f"{RESULTS}/benchmarks/corpus.tsv"
    conda:
        "../../envs/environment.yaml"
    threads: 1
    resources:
        program=PROGRAM,
        mem_mb=1000,
        runtime=10,
        train_tokens=TOKENS_NEEDED["train"],  # resources, because changing them reruns nothing
        valid_tokens=TOKENS_NEEDED["valid"],
    params:
        options=param("corpus", "options"),
        code=param("corpus", "code"),
    message:
        "corpus"
    shell:
        "{resources.program} corpus --options {params.options:q} --tensors {output.tensors} --datasheet {output.datasheet}"
        " --train-tokens {resources.train_tokens} --valid-tokens {resources.valid_tokens} &> {log}"
