// Brings story, picture, controls and numbers together; the address' fragment says what is shown.
import { makeControls } from "./controls.js";
import { fixed, make } from "./elements.js";
import { showLayer } from "./layer.js";
import * as panels from "./numbers.js";
import { Picture, said } from "./picture.js";
import { clippedColumns, derive, initial, METHODS, weightAt } from "./problem.js";
import { showSpace } from "./space.js";
import { learned, STORY } from "./story.js";

const PANELS = {
  answers: panels.answers,
  misses: panels.misses,
  steps: panels.steps,
  bounds: panels.bounds,
  orders: panels.orders,
  sides: panels.sidesOf,
  lengths: panels.lengths,
  reduction: panels.reduction,
};
const STAGES = ["target", "nearest line", "nearest dot"];
const element = (id) => document.getElementById(id);

let state = initial();
let found = derive(state);
let step = STORY[0];
let waiting = 0;
let turned = false; // by the links below the text: whoever reads on goes on at the next title

/** Change settings; `changes` may be a function of the present ones. */
function set(changes) {
  const next = { ...state, ...(typeof changes === "function" ? changes(state) : changes) };
  if (next.low > next.high) return;
  state = next;
  found = derive(state);
  if (!waiting) waiting = requestAnimationFrame(show);
}

const controls = makeControls(set);
const picture = new Picture(document.querySelector("#picture .stage"), () => found, set);

function show() {
  waiting = 0;
  picture.draw();
  controls.show(state);
  showNumbers();
  element("said").textContent = sentence();
  element("player").hidden = !step.shows.includes("lines");
  player.forEach((button, stage) => button.setAttribute("aria-pressed", String(state.stage === stage)));
}

/** Make the tables anew; what the reader opened stays open. */
function showNumbers() {
  const place = element("numbers");
  const open = place.querySelector("details")?.open ?? false;
  const panels = step.numbers.map((name) => PANELS[name](found, picture.plot.dragging, learned(step, "introduces")));
  place.replaceChildren(...panels);
  place.querySelector("details")?.toggleAttribute("open", open);
}

/** Draw the view that is shown, in the colours and the size that it has now. */
function redraw(printing = false) {
  if (!element("view-two").hidden) picture.draw();
  if (!element("view-three").hidden) showSpace(element("view-three"), printing);
  if (!element("view-layer").hidden) showLayer(element("view-layer"));
}

/** The state of the picture in words. */
function sentence() {
  const { codes, losses } = found;
  const target = state.weight.map((w) => fixed(w, 2)).join(", ");
  return `Target: weights (${target}); ${METHODS[state.method]}: integers (${said(codes[state.method])}), loss ${fixed(losses[state.method], 4)}${boundInWords()}.`;
}

/** What the bound says of this loss; nothing in steps before the one that explains it. */
function boundInWords() {
  const told = STORY.indexOf(step) >= STORY.findIndex(({ id }) => id === "bound");
  if (!told || state.method !== "nearest-plane") return "";
  const times = found.losses[state.method] / found.bound;
  if (!state.limited) return `, ${fixed(times * 100, 0)} % of the bound`;
  const clipped = clippedColumns(found);
  if (!clipped.length) return `, ${fixed(times * 100, 0)} % of the bound, which limits void all the same: the next target may be clipped`;
  const [{ column, wanted, integer }] = clipped;
  return `, ${fixed(times, 2)} times the bound, which is void: column ${column + 1} needs the integer ${said([wanted])} and gets ${said([integer])}`;
}

/** Buttons that show nearest plane one column at a time. */
const player = STAGES.map((name, stage) =>
  make("button", { type: "button", onclick: () => set({ stage }) }, `${stage + 1}. ${name}`),
);
element("player").replaceChildren(...player);

/** Show one step of the story. */
function enter(next) {
  step = next;
  const at = STORY.indexOf(step);
  element("title").textContent = `${at + 1}. ${step.title}`;
  element("text").innerHTML = `${step.text}<p class="try"><b>Try:</b> ${step.tries}</p>`;
  element("actions").replaceChildren(
    ...(step.actions ?? []).map(([label, act]) =>
      make("button", { type: "button", onclick: () => set(act(found, derive) ?? {}) }, label),
    ),
  );
  turn(element("before"), STORY[at - 1], "← ");
  turn(element("after"), STORY[at + 1] ?? { id: "three", title: "Three columns" }, "", " →");
  const rest = learned(step, "settings").filter((name) => !step.settings.includes(name));
  controls.offer(learned(step, "introduces"));
  element("controls").replaceChildren(
    ...step.settings.map((name) => controls.groups[name]),
    ...(rest.length ? [make("details", {}, make("summary", {}, "More settings"), ...rest.map((name) => controls.groups[name]))] : []),
    make("button", { type: "button", class: "reset", onclick: () => (set({ ...initial(), ...step.view }), step.begins && set(step.begins(found))) }, "Reset"),
  );
  picture.shown = new Set([...step.shows, "target"]);
  element("legend").replaceChildren(...legend());
  for (const link of element("story-steps").querySelectorAll("a")) {
    if (link.hash === `#${step.id}`) {
      link.setAttribute("aria-current", "step");
      // where the list is one line, as on a phone
      element("story-steps").scrollLeft = link.offsetLeft - element("story-steps").clientWidth / 3;
    } else link.removeAttribute("aria-current");
  }
  set(step.view);
  if (step.begins) set(step.begins(found));
}

function turn(link, to, before = "", after = "") {
  link.hidden = !to;
  if (!to) return;
  link.href = `#${to.id}`;
  link.textContent = `${before}${to.title}${after}`;
}

/** What the marks in the picture mean. */
function legend() {
  const marks = [["target", "target: the weights"], ["chosen", "dot chosen"]];
  if (step.view.cells) marks.push(["cells", "cells: targets of one dot; colours only tell neighbours apart, the chosen dot’s is strong"]);
  if (step.shows.includes("lines")) marks.push(["plane", "lines of the column rounded first"], ["project", "projection"]);
  if (step.shows.includes("box")) marks.push(["box", step.id === "order" ? "brick: sides R · step" : "box: sides R · step, around the chosen dot"]);
  if (step.shows.includes("clipped")) {
    marks.push(["left", "the box, where the target is outside of it"], ["clipped", "clipped targets: in no box"]);
    marks.push(["refused", "dots that do not exist"], ["dashed", "lines that do not exist"]);
  }
  if (step.shows.includes("circle")) marks.push(["circle", "circle: its radius squared is the bound"]);
  if (step.id === "rate") marks.push(["wide", "wider box of priced integers"]);
  return marks.map(([kind, text]) => make("span", { class: `mark-${kind}` }, make("i", { "aria-hidden": "true" }), text));
}

/** Show what the fragment of the address names: a step, or another view. */
function follow() {
  const name = decodeURIComponent(location.hash.slice(1));
  const views = { three: "three", layer: element("layer-data").textContent.trim() ? "layer" : "two" };
  const view = views[name] ?? "two";
  for (const other of ["two", "three", "layer"]) element(`view-${other}`).hidden = other !== view;
  for (const link of document.querySelectorAll(".views a")) {
    if (link.dataset.view === view) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (view === "three") showSpace(element("view-three"));
  else if (view === "layer") showLayer(element("view-layer"), JSON.parse(element("layer-data").textContent));
  else enter(STORY.find(({ id }) => id === name) ?? STORY[0]);
  const title = document.querySelector(`#view-${view} h2`);
  if (turned) title.focus({ preventScroll: true });
  if (turned) title.scrollIntoView({ block: "nearest" });
  turned = false;
}

element("story-steps").replaceChildren(
  ...STORY.map(({ id, title }) => make("li", {}, make("a", { href: `#${id}` }, title))),
);
document.querySelector('.views [data-view="layer"]').hidden = !element("layer-data").textContent.trim();
for (const id of ["before", "after"]) {
  element(id).addEventListener("click", () => (turned = true));
}
window.addEventListener("hashchange", follow);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => redraw());
for (const [event, printing] of [["beforeprint", true], ["afterprint", false]]) {
  window.addEventListener(event, () => {
    document.documentElement.classList.toggle("printing", printing);
    redraw(printing);
  });
}
/** For tests: what is shown, how to change it, and the weights that a pixel of the picture stands for. */
window.explore = {
  get found() {
    return found;
  },
  set,
  weightAtPixel: (x, y) => weightAt(found, picture.plot.placeAt(x, y)),
};
follow();
