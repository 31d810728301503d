#!/bin/sh
# A part of Slurm's Epilog for `container_scope=job`: removes the containers that belong to the job which has ended on this node.
# Epilogs are root's; the containers are the user's, and are removed as the user.

[ -n "$SLURM_JOB_USER" ] && [ -n "$SLURM_JOB_ID" ] || exit 0
home=$(getent passwd "$SLURM_JOB_USER" | cut -d: -f6)
runuser -u "$SLURM_JOB_USER" -- /usr/bin/env -i HOME="$home" PATH=/usr/bin:/bin /usr/bin/cista slurm epilog "$SLURM_JOB_ID" || true
# An epilog that fails drains the node, which what is left of a container is no reason for.
exit 0
