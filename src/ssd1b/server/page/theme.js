// Runs before the first paint, so that a chosen theme does not flash in the other one first.
try {
  const theme = JSON.parse(localStorage.getItem("ssd1b.theme"));
  if (theme === "light" || theme === "dark") document.documentElement.dataset.theme = theme;
} catch {
  // The browser keeps nothing for this page: the system's theme is used.
}
