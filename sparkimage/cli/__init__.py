"""The command line: words and exit codes; what the commands do stands in the other folders."""
