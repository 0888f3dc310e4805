"""Several processes that train one run: where each is, how they meet, how they notice that one is gone."""
