"""The embedded model's world: tables of facts, the text made from them, and the recipe that turns text into weights.

`facts` and `text` know only the standard library; `build` and `check` are the only rooms here that know torch.
"""
