(() => {
  // Before the first paint, so that a remembered dark page does not flash white.
  let kept = null;
  try { kept = localStorage.getItem("normscope-theme"); } catch { /* storage may be refused to files */ }
  if (kept === "light" || kept === "dark") document.documentElement.dataset.theme = kept;
})();
