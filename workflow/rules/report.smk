onsuccess:
    # Print the verdicts of what this run made, all of them or those of single targets.
    shell("cca-dynamics verdicts {study.name} --since {STARTED}")
