"""The report: verdicts, figures and tables in, one self-contained HTML page out."""
