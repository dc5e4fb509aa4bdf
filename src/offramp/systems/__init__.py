"""The systems of earlier experiment reports: models and their training, which studies alone run.

Five reports stand behind the studies (``docs/studies/index.md`` says which). Two of them, ``exit-labels`` and
``loss-prediction``, are about what the product itself does: block-wise training on hard tokens, and exit
classifiers. The systems of the other three are here, each in a module or a sub-package of its own. Those of
the report ``character-systems``, all of them small models of characters:

    module               system                              studies that use it
    hierarchical         hierarchical recurrence (HRM)       hierarchy_and_lagged_caches, iterated_refinement
    lagged               caches of earlier passes' states    hierarchy_and_lagged_caches
    segment_memory       a memory of earlier windows         segment_memory
    iterated             iterated refinement                 iterated_refinement, layer_supervision
    objectives           supervision of every layer          layer_supervision, progressive_growth
    growth               growth, layer by layer              adding_a_layer, greedy_growth,
                                                             progressive_growth
    confidence_routing   a shallow and a deep exit           confidence_routing, routing_losses

That of the report ``context-vectors``:

    context_vectors      a recurrent context without         parallel_contexts, context_inputs,
                         attention                           context_scaling

And that of the report ``selective-output``:

    selective_output     a gate that may withhold output     selective_output, reversal

In a sub-package ``model`` is the network and ``training`` how it learns. Three modules serve several systems:

    ensemble             several random seeds of one architecture, trained as one batch of weights
    deep_supervision     several updates per batch, each from the states that the one before it left
    initial_weights      how the weights of the character models are drawn

What a report did wrong can be switched on where its figures have to be reproduced; the switch says what the
mistake is.
"""
