"""tomoglot: pre-training on 3D medical images and the reports written about them. Research use only.

The rooms, from left to right; each imports only from those on its left::

    studies -> store -> batches -> encoders -> objectives -> recipes -> tasks -> serve

Importing this package imports none of them, so that the command line answers at once.
"""

__version__ = "0.1.0"
