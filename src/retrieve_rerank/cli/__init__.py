"""The command line: `retrieve-rerank index | search | rerank | evaluate | tune | info`.

Data go to stdout, everything else to stderr. Importing a command costs neither torch nor chromadb: what is heavy is
imported where it is used.
"""

from retrieve_rerank.cli.app import main

__all__ = ["main"]
