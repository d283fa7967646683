"""The training harness behind ``lip-fast train``, ``sweep``, ``study``, ``report`` and ``repair``.

A folder for each subject; those further down may import those above:

    files       what is read from and written to disk: one-line errors, no code run
    data        the data sets
    noise       the labels that a seed is trained on
    models      the networks
    algorithms  what is minimised, and what else an algorithm does in a training
    settings    the settings of a run and of a study, and how they are read
    training    one network in training, and several processes that train it together
    repairs     a trained head replaced without training
    runs        one run: plan, records, folder, checkpoints, results
    sweeps      many runs at once        reports     what many runs come to
    studies     what wrong labels do to the weight of a classifier
    commands    one module for each subcommand

``seeding.py`` has the random streams of all of them. Only this part of the package imports scikit-learn,
matplotlib, jsonargparse, tqdm and the like (the extra ``harness``); nothing in the core imports it.
"""
