"""A local Ray cluster of several processes, which leaves nothing behind."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def ray_cluster(cpus: int = 4) -> Iterator[None]:
    """Start one, without dashboard and statistics; stop it at the end.

    Args:
        cpus: How many Ray is told that there are: tests wait for processes rather than for processors.
    """
    import ray

    folder = tempfile.mkdtemp(prefix="ray-")  # a short path, as there are sockets in it
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")  # else it writes a token to the user's folder
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what it will do anyhow, and warns of
        try:
            ray.init(
                num_cpus=cpus,
                include_dashboard=False,
                logging_level="error",
                log_to_driver=False,
                object_store_memory=200 * 2**20,
                _node_ip_address="127.0.0.1",
                _temp_dir=folder,
            )
            ray.data.DataContext.get_current().enable_progress_bars = False
            yield
        finally:
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)
