"""Many machines: passages encoded and indexed on a Ray cluster.

Everything runs on the cluster that `ray.init` connected to; without it Ray starts one on this machine. Each worker
loads its model once. This package must be installed on every node, or be named in the cluster's runtime environment.
"""

from retrieve_rerank.errors import require

require("ray", extra="ray")
require("pyarrow", extra="ray")  # which Ray alone does without

from retrieve_rerank.ray.encoding import encode  # noqa: E402
from retrieve_rerank.ray.indexing import PassagesFailedError, index, index_store  # noqa: E402

__all__ = ["PassagesFailedError", "encode", "index", "index_store"]
