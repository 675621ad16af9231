"""One job on the farm: submitted, watched, downloaded."""
