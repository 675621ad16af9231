"""Jobs from Python, for notebooks: ``from producer import Job, run, submit``."""
