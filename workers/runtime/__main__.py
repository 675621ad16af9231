"""``python -m workers.runtime FARM NAME CONCURRENCY``: the Celery worker of one device, started by the supervisor.

This is not a module of another name, because multiprocessing would import that again in the render process.
"""

import sys

from workers.runtime.app import serve

if __name__ == "__main__":
    sys.exit(serve(sys.argv[1], sys.argv[2], int(sys.argv[3])))
