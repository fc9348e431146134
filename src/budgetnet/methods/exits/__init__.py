"""Early exits whose samples are weighted for the budget: pure functions on plain tensors.

Han et al., Learning to Weight Samples for Dynamic Early-exiting Networks, ECCV 2022. Exits are numbered from 1 to K in
formulas; tensors of them are (..., K), the first exit first.
"""
