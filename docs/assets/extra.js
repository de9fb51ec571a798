// Tables that are wider than the page scroll; the keyboard has to reach them.
addEventListener("load", () => {
  for (const box of document.querySelectorAll(".md-typeset__scrollwrap")) box.tabIndex = 0;
});
