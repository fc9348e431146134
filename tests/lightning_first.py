"""Lightning, imported before anything else does and as a run imports it, which takes half the time."""

from budgetnet.internals import quick_imports

with quick_imports():
    import pytorch_lightning  # noqa: F401
