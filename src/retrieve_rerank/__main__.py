"""`python -m retrieve_rerank` is the command `retrieve-rerank`."""

from retrieve_rerank.cli import main

main()
