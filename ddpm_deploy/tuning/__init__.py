"""Which backend is the fastest on this machine, for each batch size: measured once, remembered, opened as one.

Only what is within the parity budget of its precision takes part. Its use is described in docs/backends.md.
"""

from ddpm_deploy.tuning.auto import open_auto, tune
from ddpm_deploy.tuning.question import ANY, Candidate, Question
from ddpm_deploy.tuning.record import Bucket, Record, Verdict

__all__ = ["ANY", "Bucket", "Candidate", "Question", "Record", "Verdict", "open_auto", "tune"]
