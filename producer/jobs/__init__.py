"""One job on the farm: inventory, submission, status, progress, download."""
