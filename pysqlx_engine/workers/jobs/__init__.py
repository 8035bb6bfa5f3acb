"""The worker queue: jobs in the user's own database."""
