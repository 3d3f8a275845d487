onsuccess:
    # Print the verdicts of whatever was asked for; claims.csv exists once all targets were made.
    if Path(rules.claims.output[0]).exists():
        shell("cca-dynamics verdicts {study.name}")
