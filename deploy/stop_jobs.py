#!/usr/bin/env python
"""Ask the jobs of a Ray cluster to stop, and wait until they have: the preStop hook of a head pod.

    stop_jobs.py [--wait-only] [--seconds 300]

A job that is asked to stop gets SIGTERM: `clip-pipe train` writes a checkpoint. ``--wait-only`` is for worker
pods: the ranks in them must live until that is written. Run where Ray's own variables name the cluster and its
token (RAY_ADDRESS, RAY_AUTH_*). Exits 0 also where the jobs would not end: the pod goes anyhow.
"""

from __future__ import annotations

import argparse
import sys
import time

POLL_S = 1.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--address", default=None, help="the dashboard, http://host:8265")
    parser.add_argument("--wait-only", action="store_true")
    parser.add_argument("--seconds", type=float, default=300.0, help="how long to wait at most")
    options = parser.parse_args()
    deadline = time.monotonic() + options.seconds
    try:
        left = stopped(options.address, deadline, ask=not options.wait_only)
    except Exception as fault:  # the head may be gone already, and a hook must not hold the pod
        print(f"stop_jobs: {fault}", file=sys.stderr)
        return
    for job in left:
        print(f"stop_jobs: job {job} still runs after {options.seconds:.0f} s", file=sys.stderr)


def stopped(address: str | None, deadline: float, ask: bool) -> list[str]:
    """Ids of jobs that still run at the deadline."""
    from ray.job_submission import JobStatus, JobSubmissionClient

    client = JobSubmissionClient(address)
    going = {JobStatus.RUNNING, JobStatus.PENDING}
    asked: set[str] = set()
    while True:
        left = [job.submission_id for job in client.list_jobs() if job.status in going]
        left = [job for job in left if job]
        for job in left if ask else ():
            if job not in asked:
                client.stop_job(job)
                asked.add(job)
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(POLL_S)


if __name__ == "__main__":
    main()
