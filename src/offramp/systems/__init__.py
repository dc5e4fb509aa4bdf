"""The systems of the earlier experiment reports: models and their training, which the studies rerun and the product never runs.

Five reports stand behind the studies (their names are explained in ``docs/findings.md``). Two of them, ``exit-labels`` and
``loss-prediction``, are about what the product itself does: block-wise training on hard tokens and exit classifiers. The
systems of the other three live here, each in a module or a sub-package of its own:

    system                          module                 report               read by the study
    hierarchical recurrence (HRM)   hierarchical           character-systems    hierarchy_and_lagged_caches, iterated_refinement
    lagged caches                   lagged                 character-systems    hierarchy_and_lagged_caches
    memory of earlier windows       segment_memory         character-systems    segment_memory
    iterated refinement             iterated               character-systems    iterated_refinement, layer_supervision
    layer supervision               objectives             character-systems    layer_supervision, progressive_growth
    growth, layer by layer          growth                 character-systems    adding_a_layer, greedy_growth, progressive_growth
    confidence routing              confidence_routing     character-systems    confidence_routing, routing_losses
    context vectors                 context_vectors        context-vectors      parallel_contexts, context_inputs, context_scaling
    selective output                selective_output       selective-output     selective_output, reversal

In a sub-package ``model`` is the network and ``training`` how it learns. Three modules serve several systems:

    ensemble            several random seeds of one architecture, trained as one batch of weights
    deep_supervision    several updates per batch, each from the states that the one before it left
    initial_weights     how the weights of the character-level models are drawn

What a report did wrong can be switched on where its figures have to be reproduced, and the switch says what the mistake is.
"""
