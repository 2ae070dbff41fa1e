"""What normscope's parts cost, measured on the machine at hand."""

from normscope.bench._memory import peak_bytes as peak_bytes
