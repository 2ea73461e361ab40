"use strict";
// Draws the figures of a page, anew whenever its width changes.
// charts: name -> function of a width that returns what the figure of that name shows, or null for none.
function drawFigures(charts) {
  function draw() {
    for (const [name, make] of Object.entries(charts)) {
      const figure = document.getElementById(`chart-${name}`);
      if (!figure) continue;
      figure.hidden = false;
      const place = figure.querySelector(".chart");
      const made = make(Math.max(place.clientWidth, 260));
      figure.hidden = made === null;
      place.replaceChildren(...[made ?? []].flat());
      // Plot labels groups that have no role, which is not allowed
      for (const group of place.querySelectorAll("g[aria-label]")) group.setAttribute("role", "group");
    }
  }

  let width = document.body.clientWidth;
  addEventListener("resize", () => {
    if (document.body.clientWidth === width) return;
    width = document.body.clientWidth;
    draw();
  });
  draw();
}
