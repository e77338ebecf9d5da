"""Measurements behind the README and ``docs/benchmarks.md``: run these from the repository's root.

======================================  ==========================================================
``python -m benchmarks.ladder``         one technique per row: what each of them is worth
``python -m benchmarks.layers``         the native engine's convolutions in % of the peak
``python -m benchmarks.groups``         grouped and depthwise layers, form by form
``python -m benchmarks.guard``          whether the native engine is still faster than oneDNN's
``python -m benchmarks.overhead``       what the runtime adds to the operators' own time
``python -m benchmarks.host_time``      what the host does in a call on a GPU beside launching
``python -m benchmarks.cold_load``      a saved model's first answer beside ``optimize``'s
``python -m benchmarks.throughput``     single images a second, in turn and in streams
``python -m benchmarks.memory``         resident memory over a thousand calls of fifty shapes
``python -m benchmarks.summary``        the README's table and chart, from the bench's record
``python -m benchmarks.onnx_exporters`` our translation to ONNX beside torch's exporter
``pytest benchmarks/bench_operators.py``  every distinct convolution, several ways
``pytest benchmarks/bench_models.py``   whole models, several ways
``python -m fastres.bench``             whole models beside the other runtimes
======================================  ==========================================================

``results/`` holds their records; ``python -m fastres.bench --from-record PATH`` prints one.
"""
