"""An open job as the collector keeps it between two passes."""

from dataclasses import dataclass

import numpy as np

from producer.collector.job_gallery import JobGallery
from producer.collector.job_layers import JobLayers
from producer.jobs.inventory import load_job
from workers.clients.storage import Store
from workers.contract.job import Job


@dataclass(kw_only=True)
class WatchedJob:
    """A cache: losing it costs a few requests."""

    job: Job
    #: id of the submission; a later submission may have deleted records
    submission: str
    layers: JobLayers
    gallery: JobGallery

    @classmethod
    def load(cls, job_id: str, submission: str, store: Store) -> "WatchedJob":
        """Read a job, and write its gallery's page, which is there from now on. Raises NoJob and CorruptJob."""
        job = load_job(job_id, store)
        gallery = JobGallery(job, store)
        gallery.write_page()
        if not gallery.document:
            gallery.update({}, np.zeros(len(job.tiles), bool), {})
        return cls(job=job, submission=submission, layers=JobLayers(job, gallery.stored_facts), gallery=gallery)
