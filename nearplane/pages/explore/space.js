// Three columns: the lattice in space, drawn by three.js (the global THREE).
import { COMPARED, compared, fixed, make, table } from "./elements.js";
import * as lattice from "./lattice.js";
import { inverse, matmul, matvec } from "./matrices.js";
import { said } from "./picture.js";
import { colourNamed } from "./plot.js";

const AROUND = 2; // integers drawn to either side of the target's
const ORDERS = { reversed: "3, 2, 1", natural: "1, 2, 3", activation: "activation: largest input first", "min-pivot": "min-pivot" };
const STAGES = ["target", "nearest plane", "nearest line", "nearest dot"];

const settings = {
  size: [1, 0.85, 0.75],
  together: [0.75, 0.5, 0.6], // correlation of inputs 1 and 2, 1 and 3, 2 and 3
  weight: [-0.32, -0.49, -0.3],
  order: "reversed",
  stage: 3,
};

/** The Hessian of inputs of such sizes that go together so much. */
function hessianOf({ size, together: [ab, ac, bc] }) {
  const correlation = [[1, ab, ac], [ab, 1, bc], [ac, bc, 1]];
  return correlation.map((row, i) => row.map((x, j) => x * size[i] * size[j]));
}

/** All that follows from the settings; null if no inputs go together so. */
export function deriveSpace(set) {
  const hessian = hessianOf(set);
  const natural = lattice.basis(hessian, [0, 1, 2], 0);
  if (!natural.factor || natural.factor.some((row, k) => row[k] < 0.02)) return null;
  const order = set.order === "reversed" ? [2, 1, 0] : lattice.orderColumns(hessian, set.order, 0);
  const own = lattice.basis(hessian, order, 0);
  const step = [1, 1, 1];
  const root = natural.factor.map((row) => lattice.fromFactor(row, natural)); // FᵀF = H
  const rotation = matmul(root.map((row) => lattice.toFactor(row, own)), invertUpper(own.factor));
  const target = lattice.toFactor(set.weight, own);
  const plane = lattice.nearestPlane(target, own.factor, step);
  const code = lattice.fromFactor(plane.code, own);
  const codes = {
    "closest dot": lattice.fromFactor(lattice.closest(target, own.factor, step), own),
    "nearest plane": code,
    "round to nearest": lattice.roundToNearest(set.weight, step),
  };
  const update = lattice.gptq(set.weight, hessian, step, order, 0);
  return { hessian, own, order, step, root, rotation, plane, code, codes, update, bound: lattice.bound(own.factor, step) };
}

/** The inverse of an upper triangular matrix: R⁻¹ = (RᵀR)⁻¹ Rᵀ. */
function invertUpper(upper) {
  const transposed = upper.map((_, j) => upper.map((row) => row[j]));
  return matmul(inverse(matmul(transposed, upper)), transposed);
}

let space = null;

/** Show the view; it is built when it is first asked for. `printing` asks for a picture that prints. */
export function showSpace(place, printing = false) {
  if (!space) space = new Space(place);
  space.update();
  space.copy(printing);
}

class Space {
  constructor(place) {
    this.found = deriveSpace(settings);
    this.said = make("p", { class: "said", "aria-live": "polite" });
    this.stage = make("div", { class: "stage", tabindex: 0, role: "img", "aria-label": "The lattice in space: arrow keys turn it" });
    this.labels = make("div", { class: "labels", "aria-hidden": "true" });
    this.stage.append(this.labels);
    this.buttons = STAGES.map((name, stage) =>
      make("button", { type: "button", onclick: () => ((settings.stage = stage), this.update()) }, `${stage + 1}. ${name}`),
    );
    this.player = make("div", { class: "player" }, this.buttons);
    this.numbers = make("section", { class: "numbers", "aria-label": "Numbers" });
    this.sliders = [];
    place.append(
      make(
        "section",
        { class: "story" },
        make("h2", { tabindex: -1 }, "Three columns"),
        make("p", {}, "With three columns the dots fill space. One integer of the column rounded first is a plane of dots; in the plane, an integer of the second is a line; on the line, one of the third is a dot. A layer with 4096 inputs goes the same way in 4096 dimensions: it is 4096 divisions and roundings."),
        make("p", {}, "The residual of each step is at a right angle to all that follow, so the three together fill a box: half a side each at most."),
        make("p", { class: "try" }, make("b", {}, "Try: "), "turn the picture with mouse, finger or arrow keys; go through the steps; let all inputs go together."),
        make("p", { class: "turn" }, make("a", { href: "#reduction", rel: "prev" }, "← A better basis")),
      ),
      make("figure", { class: "picture" }, this.stage, this.player, make("figcaption", {}, this.said)),
      this.controls(),
      this.numbers,
    );
    this.draws = this.open();
    new ResizeObserver(() => this.render()).observe(this.stage);
  }

  /** Lay a copy over what WebGL drew, which browsers print; or take it away. */
  copy(wanted) {
    this.copied?.remove();
    if (this.draws) this.renderer.domElement.style.visibility = wanted ? "hidden" : "";
    if (!wanted || !this.draws) return;
    const { width, height } = this.renderer.domElement;
    this.copied = make("canvas", { width, height, "aria-hidden": "true" });
    this.copied.getContext("2d").drawImage(this.renderer.domElement, 0, 0);
    this.labels.before(this.copied);
  }

  /** Make the scene; false where the browser has no WebGL. */
  open() {
    try {
      this.renderer = new THREE.WebGLRenderer({ antialias: true, alpha: true, preserveDrawingBuffer: true });
    } catch {
      this.stage.append(make("p", {}, "This browser draws nothing in three dimensions (WebGL is off); the numbers are there all the same."));
      return false;
    }
    this.renderer.domElement.setAttribute("aria-hidden", "true");
    this.stage.prepend(this.renderer.domElement);
    this.scene = new THREE.Scene();
    this.scene.add(new THREE.AmbientLight(0xffffff, 2.2));
    const sun = new THREE.DirectionalLight(0xffffff, 1.6);
    sun.position.set(3, 5, 4);
    this.scene.add(sun);
    this.camera = new THREE.PerspectiveCamera(36, 1, 0.1, 100);
    this.camera.position.set(3.4, 2.2, 5.8);
    this.turning = new THREE.OrbitControls(this.camera, this.renderer.domElement);
    this.turning.enablePan = false;
    this.turning.addEventListener("change", () => this.render());
    this.stage.addEventListener("keydown", (event) => this.turn(event));
    this.drawn = new THREE.Group();
    this.scene.add(this.drawn);
    return true;
  }

  turn(event) {
    const ways = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const way = ways[event.key];
    if (!way) return;
    event.preventDefault();
    const { position } = this.camera;
    const radius = position.length();
    const around = Math.atan2(position.x, position.z) + 0.1 * way[0];
    const down = Math.min(3, Math.max(0.14, Math.acos(position.y / radius) + 0.1 * way[1]));
    position.set(radius * Math.sin(down) * Math.sin(around), radius * Math.cos(down), radius * Math.sin(down) * Math.cos(around));
    this.turning.update();
    this.render();
  }

  controls() {
    const slider = (label, values, k, [min, max]) => {
      const output = make("output");
      const input = make("input", { type: "range", min, max, step: 0.01 });
      input.addEventListener("input", () => {
        const before = values[k];
        values[k] = Number(input.value);
        const possible = deriveSpace(settings);
        this.refused = possible ? "" : "No inputs go together like that: the last setting that can be is kept.";
        if (!possible) values[k] = before;
        this.update();
      });
      this.sliders.push(() => {
        input.value = values[k];
        output.textContent = fixed(values[k], 2);
      });
      return make("label", { class: "slider" }, make("span", {}, label), input, output);
    };
    const select = make("select", {}, Object.entries(ORDERS).map(([value, text]) => make("option", { value }, text)));
    select.addEventListener("change", () => {
      settings.order = select.value;
      this.update();
    });
    const group = (title, ...rows) => make("fieldset", { class: "group" }, make("legend", {}, title), rows);
    const pairs = [[1, 2], [1, 3], [2, 3]];
    return make(
      "section",
      { class: "controls", "aria-label": "Settings" },
      group("Order", make("label", { class: "choice" }, make("span", {}, "Rounded first to last"), select)),
      group("Inputs that go together", pairs.map(([a, b], k) => slider(`correlation of ${a} and ${b}`, settings.together, k, [-0.98, 0.98]))),
      group("Size of the inputs", [0, 1, 2].map((k) => slider(`of input ${k + 1}`, settings.size, k, [0.2, 1.5]))),
      group("Target", [0, 1, 2].map((k) => slider(`weight ${k + 1}`, settings.weight, k, [-1.5, 1.5]))),
    );
  }

  update() {
    this.found = deriveSpace(settings);
    this.sliders.forEach((show) => show());
    const { codes, plane, update, bound, own, hessian, step } = this.found;
    const loss = (code) => lattice.loss(settings.weight, code, step, hessian);
    const sentence = `Nearest plane: integers (${said(codes["nearest plane"])}), loss ${fixed(loss(codes["nearest plane"]), 4)}, ${fixed((100 * loss(codes["nearest plane"])) / bound, 0)} % of the bound.`;
    this.said.textContent = this.refused || sentence;
    const rows = plane.trace.flatMap(({ j, best, integer, residual }, k) => [
      [`${k + 1}. column ${own.columns[j] + 1}: best value`, ...compared(best, update.trace[k].best)],
      ["rounded", [said([integer]), make("br"), said([update.trace[k].integer])], integer === update.trace[k].integer ? "0" : "differ"],
      ["distance left, and at most", [fixed(Math.abs(residual), 4), make("br"), fixed(own.factor[j][j] / 2, 4)], ""],
    ]);
    this.numbers.replaceChildren(
      table("This target, rounded", ["", "integers", "loss"], Object.entries(codes).map(([name, code]) => [name, said(code), fixed(loss(code), 4)])),
      table("Step by step", COMPARED, rows),
    );
    this.buttons.forEach((button, stage) => button.setAttribute("aria-pressed", String(stage === settings.stage)));
    if (this.draws) this.draw();
  }

  draw() {
    const { drawn, found } = this;
    drawn.traverse((each) => {
      each.geometry?.dispose();
      each.material?.dispose();
    });
    drawn.clear();
    this.named = [];
    this.drawDots();
    this.drawArrows();
    this.drawSteps();
    const target = vector(matvec(found.root, settings.weight));
    drawn.add(ball(target, 0.075, "target"));
    this.named.push([target, "target"]);
    this.render();
  }

  /** Dots, larger and stronger the more of their integers are those chosen so far. */
  drawDots() {
    const { root, code, own, plane } = this.found;
    const chosen = plane.trace.slice(0, settings.stage).map(({ j }) => own.columns[j]);
    const places = [[], [], [], []];
    for (let a = -AROUND; a <= AROUND; a++)
      for (let b = -AROUND; b <= AROUND; b++)
        for (let c = -AROUND; c <= AROUND; c++) {
          const z = [a, b, c].map((x, k) => x + code[k]);
          const first = chosen.findIndex((k) => z[k] !== code[k]);
          places[first < 0 ? chosen.length : first].push(vector(matvec(root, z)));
        }
    const looks = [[0.03, "dot"], [0.045, "plane"], [0.055, "line"], [0.075, "accent"]];
    places.forEach((each, k) => this.drawn.add(balls(each, ...looks[k])));
  }

  drawArrows() {
    [0, 1, 2].forEach((k) => {
      const tip = vector(this.found.root.map((row) => row[k]));
      this.drawn.add(segment([new THREE.Vector3(), tip], "arrow"));
      const head = new THREE.Mesh(new THREE.ConeGeometry(0.045, 0.14, 16), flat("arrow"));
      const way = tip.clone().normalize();
      head.position.copy(tip.clone().addScaledVector(way, -0.07));
      head.quaternion.setFromUnitVectors(new THREE.Vector3(0, 1, 0), way);
      this.drawn.add(head);
      this.named.push([tip, `column ${k + 1}`]);
    });
  }

  /** The plane, the line in it, the dot on it, and the projections that lead there. */
  drawSteps() {
    const { rotation, plane, root, own, code } = this.found;
    const axes = [0, 1, 2].map((k) => vector(rotation.map((row) => row[k])));
    const path = [vector(matvec(root, settings.weight))];
    plane.trace.slice(0, settings.stage).forEach(({ j, residual }) => {
      path.push(path.at(-1).clone().addScaledVector(axes[j], -residual));
    });
    for (let k = 1; k < path.length; k++) this.drawn.add(tube(path[k - 1], path[k], "error"));
    path.slice(1, -1).forEach((place) => this.drawn.add(ball(place, 0.04, "error")));
    if (settings.stage > 0) {
      const side = 1.8;
      const corners = [[1, 1], [1, -1], [-1, -1], [-1, 1]].map(([a, b]) =>
        path[1].clone().addScaledVector(axes[0], a * side).addScaledVector(axes[1], b * side),
      );
      this.drawn.add(sheet(corners, "plane"));
    }
    if (settings.stage > 1) {
      this.drawn.add(segment([-1.8, 1.8].map((t) => path[2].clone().addScaledVector(axes[0], t)), "accent"));
    }
    if (settings.stage > 2) this.drawn.add(box(vector(matvec(root, code)), axes, own.factor, "box"));
  }

  render() {
    if (!this.draws || !this.stage.clientWidth) return;
    const [width, height] = [this.stage.clientWidth, this.stage.clientHeight];
    this.renderer.setPixelRatio(Math.min(window.devicePixelRatio || 1, 2));
    this.renderer.setSize(width, height);
    this.camera.aspect = width / height;
    this.camera.updateProjectionMatrix();
    this.renderer.render(this.scene, this.camera);
    this.labels.replaceChildren(
      ...(this.named ?? []).map(([place, text]) => {
        const seen = place.clone().project(this.camera);
        const [left, top] = [((seen.x + 1) / 2) * width, ((1 - seen.y) / 2) * height];
        return make("span", { style: `left:${left + 8}px;top:${top - 22}px` }, text);
      }),
    );
  }
}

const vector = ([x, y, z]) => new THREE.Vector3(x, y, z);
const colour = (name) => new THREE.Color(colourNamed(`space-${name}`));
const flat = (name) => new THREE.MeshBasicMaterial({ color: colour(name) });

function balls(places, radius, name) {
  const made = new THREE.InstancedMesh(new THREE.SphereGeometry(radius, 20, 14), new THREE.MeshLambertMaterial({ color: colour(name) }), places.length);
  places.forEach((place, k) => made.setMatrixAt(k, new THREE.Matrix4().makeTranslation(place.x, place.y, place.z)));
  return made;
}

const ball = (place, radius, name) => balls([place], radius, name);

function segment(places, name) {
  return new THREE.Line(new THREE.BufferGeometry().setFromPoints(places), new THREE.LineBasicMaterial({ color: colour(name) }));
}

/** A line that is thick enough to see. */
function tube(from, to, name) {
  const way = to.clone().sub(from);
  const made = new THREE.Mesh(new THREE.CylinderGeometry(0.016, 0.016, way.length(), 10), flat(name));
  made.position.copy(from.clone().add(to).multiplyScalar(0.5));
  made.quaternion.setFromUnitVectors(new THREE.Vector3(0, 1, 0), way.normalize());
  return made;
}

function sheet(corners, name) {
  const geometry = new THREE.BufferGeometry();
  const at = [0, 1, 2, 0, 2, 3].flatMap((k) => corners[k].toArray());
  geometry.setAttribute("position", new THREE.Float32BufferAttribute(at, 3));
  const material = new THREE.MeshBasicMaterial({ color: colour(name), transparent: true, opacity: 0.22, side: THREE.DoubleSide, depthWrite: false });
  return new THREE.Mesh(geometry, material);
}

/** The edges of the box around a dot: sides R_jj along the axes. */
function box(centre, axes, factor, name) {
  const corner = (signs) =>
    signs.reduce((place, sign, j) => place.addScaledVector(axes[j], (sign * factor[j][j]) / 2), centre.clone());
  const ends = [];
  for (let j = 0; j < 3; j++)
    for (const a of [-1, 1])
      for (const b of [-1, 1]) {
        const at = (x) => [a, b].toSpliced(j, 0, x);
        ends.push(corner(at(-1)), corner(at(1)));
      }
  return new THREE.LineSegments(new THREE.BufferGeometry().setFromPoints(ends), new THREE.LineBasicMaterial({ color: colour(name) }));
}
