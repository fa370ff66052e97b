"""Document analysis, the workload that agent platforms are described with: extract, classify and summarize, report."""
