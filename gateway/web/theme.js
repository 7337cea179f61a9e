// Before anything is painted: the colours that were chosen here last. Without a choice the system decides.
"use strict";
try {
  const chosen = localStorage.getItem("treewire.theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch { /* storage is closed to us: the system decides */ }
