"""What normscope's parts cost, measured on the machine at hand."""
