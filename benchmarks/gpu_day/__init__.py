"""A GPU for eight minutes: is it right, how fast is it, and was the model of the time right?

See ``python -m benchmarks.gpu_day --help``. Every stage is a process of its own and appends a line
of JSON per result to its file: :mod:`~benchmarks.gpu_day.stages` lists them, ``day`` runs them, and
``page`` is what they come to.
"""
