"""The API `finetune.dev/v1alpha1`: frozen pydantic models, one file a kind, CEL rules beside the fields."""
