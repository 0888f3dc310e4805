"""The code inside the pods: prepare data, check the model, train, evaluate, serve."""
