"""The static web gallery of a job."""
