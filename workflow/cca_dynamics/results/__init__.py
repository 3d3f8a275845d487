"""The paper's results, one module each, and what they share: inputs, tables, statistics, clustering, claims,
figures.

A result module has

    Options                      its keys in the config: bounds, defaults, and which stages read each
    check(config, options)       refuse options that contradict the config (ConfigError)
    cohorts(config, options)     the cohorts of networks it needs
    compute(inputs, options)     → tidy table, exactly the data drawn
    claims(table, options)       → the paper's statements about it, each with a computed verdict
    plot(table, claims, options) → the figure

if it trains nothing,

    comparisons(options)         how many layers of what size it compares, for the estimate of its cost

and, if some settings make a claim impossible to test,

    obstacles(config, options)   these settings (Obstacle), of which users are told before the first job

if it compares networks of other results, by the functions of `classifiers`,

    NETWORKS_OF                  these results, whose blocks `network` and `training` are checked with its own

and, if the paper leaves some of the options open,

    ALTERNATIVES                 key → other values, the default of the config key multiverse.<result>

Check and cohorts run whenever the DAG is built, so modules import torch and matplotlib only inside the other functions.
Every room above may import this one; it imports the rooms below it and `similarity`.
"""
