"""Queue, caches, API calls, lease and worker loop; knows nothing about fine-tuning."""
