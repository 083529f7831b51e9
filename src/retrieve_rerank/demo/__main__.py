"""Make the demo models ready and say where they are."""

import sys

from retrieve_rerank.demo import demo_models
from retrieve_rerank.errors import RetrieveRerankError

try:
    sys.stdout.writelines(f"{folder}\n" for folder in demo_models())
except RetrieveRerankError as error:
    sys.exit(f"retrieve_rerank.demo: {error}")
