"""The Celery worker: messages in, objects out."""
