"""What a checkpoint is worth: its perplexity, its bits, and whether it keeps its promises.

| file | idea |
|---|---|
| perplexity | how well a model predicts a text |
| divergence | how far its predictions are from those of the model it was made of |
| bits | where the bytes of a checkpoint are |
| replay | the walk again, with stored values in the place of rounding |
| verify | whether a checkpoint is whole, and its certificates true |
"""
