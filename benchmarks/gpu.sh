#!/bin/sh
# All that needs a GPU, in the order of its worth; each part also alone. From the repository's root:
#   benchmarks/gpu.sh                     every part
#   benchmarks/gpu.sh tests               the same numbers as on a CPU, and the same every time: 2 minutes
#   benchmarks/gpu.sh similarity          PWCCA between all pairs, permutations, eigenproblems
#   benchmarks/gpu.sh training            cohorts in lockstep, the paper's network with and without CUDA graphs
#   benchmarks/gpu.sh study               figure 3 on all of CIFAR-10 at the paper's width, which is downloaded
# DEVICE=cpu runs what there is on a CPU, to try the script. Numbers go to benchmarks/out/.
set -e
PYTHON=${PYTHON:-python}
DEVICE=${DEVICE:-cuda}
for part in ${*:-tests similarity training study}; do
    echo "== $part"
    case $part in
    tests) $PYTHON -m pytest tests/test_gpu.py --durations=5 ;;
    similarity)
        [ "$DEVICE" = cpu ] || $PYTHON benchmarks/similarity.py --eigen
        $PYTHON benchmarks/similarity.py --device "$DEVICE" --quick
        $PYTHON benchmarks/similarity.py --device "$DEVICE" --inference
        ;;
    training)
        $PYTHON benchmarks/training.py --device "$DEVICE" --widths 4 16
        $PYTHON benchmarks/training.py --device "$DEVICE" --paper --networks 5 --multipliers .25 1
        ;;
    study) snakemake --cores all --configfile studies/paper.yaml studies/paper-figure3.yaml --config device="$DEVICE" jobs_per_gpu=2 ;;
    *) echo "no part $part: tests, similarity, training, study" >&2 && exit 2 ;;
    esac
done
