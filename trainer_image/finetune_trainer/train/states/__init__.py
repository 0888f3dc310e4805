"""What a run keeps in its folder so that its next pod continues, and what it publishes in the end."""
