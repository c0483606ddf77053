"""
Every kind of engine with every kind of consumer, and nothing left behind.

``python -m tests.matrix --requests 20000 --seed 1`` runs all pairs in random order, a batch at a time on one
event loop; ``--all`` runs every pair once. After each batch the loop gets a bounded number of turns
and the garbage is collected. Then nothing may be left: no task, span, generator, stream, context,
count of the gauge, thread or byte; nothing may have been written to stderr, warned of or given to
the loop's exception handler; no request may hang. What the rows say of aborts, cancellations, ends
and errors is checked for each request.

How to read a failure::

    finally_waits x cancel_in_pull (decode, index 17): the engine was not closed
      again: python -m tests.matrix --engine finally_waits --consumer cancel_in_pull --seed 1 --index 17

The first name is registered in ``engines_*.py``, the second one in ``consumers_*.py``. ``--index``
picks the request, whose random choices depend on the seed, the index and the two names. What can't be told
apart within a batch (a warning, a lost task) is looked for by running the batch's requests again,
each alone; what shows only together is reported for the batch, with ``--first`` and ``--requests``
to run it again. A blocked event loop ends the process with all stacks.

An engine of the matrix keeps what Python itself asks for: it holds its own tasks, and while it holds
its own stream it waits for nothing that never comes (a step under way that refers to the stream is
in use as far as anybody can tell).

To add a kind, write one function with ``@engine`` or ``@consumer``; with ``@asking`` a consumer
asks for the stream itself. Engines wait by ``call.pause``, and clean up by ``call.clean``, which
count. A consumer says what it does by ``request.note``, ``request.drop`` and the like, which the
checks compare with what the engine saw.

Modules: ``record`` (what is noted of a request, and the rows as checks), ``kinds`` (the two
registries), ``call`` (what an engine uses), ``request`` (what a consumer uses), ``witness`` (what
listens to the process), ``run`` (batches and the command line).
"""
