// The steps of the story: what each says, shows and lets one set. Their names are the page's links.

/** Random targets until one is as `wanted`; null if none is found. */
function search(found, derive, wanted) {
  let seed = 7;
  const random = () => (seed = (seed * 16807) % 2147483647) / 2147483647;
  for (let tries = 0; tries < 4000; tries++) {
    const weight = found.state.step.map((s) => s * (random() * 3 - 1.5));
    const made = derive({ ...found.state, weight });
    if (wanted(made)) return { weight };
  }
  return null;
}
const differ = (a, b) => a[0] !== b[0] || a[1] !== b[1];

/** What the steps up to one have together of a field, such as the algorithms that were told of. */
export const learned = (step, field) => [
  ...new Set(STORY.slice(0, STORY.indexOf(step) + 1).flatMap((each) => each[field] ?? [])),
];

export const STORY = [
  {
    id: "lattice",
    title: "A layer is a lattice",
    introduces: ["closest", "nearest"],
    view: { method: "closest", cells: false, stage: 2, limited: false, misses: false },
    shows: ["arrows"],
    settings: ["hessian", "target"],
    numbers: ["answers"],
    text: `<p>Take one output of a linear layer with two inputs, <i>w</i>₁<i>x</i>₁ + <i>w</i>₂<i>x</i>₂.
      Quantization puts an integer times a step in place of each weight. What counts is how far the <em>output</em> moves, on average
      over the inputs. That depends on how large the two inputs are and how they go together: on the Hessian
      <b>H</b>, the mean of <i>x xᵀ</i>.</p>
      <p>Draw the weights <i>w</i> at the place <b>F</b><i>w</i>, where <b>FᵀF = H</b>. Then <strong>squared distance in the picture is
      mean squared error of the output</strong>, in short the <em>loss</em>. Every pair of integers is a dot: together they are a <em>lattice</em>. The
      weights themselves are the <span class="key target-key">target</span>. To quantize is to choose a dot near it: the closest dot has the least loss, and it
      need not be the one that rounding each weight by itself gives.</p>
      <p>How to read the picture: the numbers at a dot are its integers, of column 1 (the weight of input 1) and of column 2. Both steps are 1 here, so that weights count steps, too.
      The bar at the lower left is a length of 1: a target that far from its dot has a loss of 1.</p>`,
    tries: `Drag the target, or an arrow: the arrows are the two columns of <b>F</b>, one step long. Inputs that go together make
      them point the same way.`,
  },
  {
    id: "cells",
    title: "Which dot?",
    introduces: ["nearest-plane"],
    view: { method: "nearest", cells: true, stage: 2, limited: false, misses: false },
    shows: ["arrows", "others"],
    settings: ["method", "hessian", "target"],
    numbers: ["answers", "misses"],
    text: `<p>A colour is a <em>cell</em>: all targets that an algorithm takes to the dot inside it. For the closest dot, cells are hexagons.
      <strong>Round to nearest</strong> rounds each weight by itself; its cells are the slanted boxes that the arrows span, and where inputs go
      together these reach far from their dot. <strong>Nearest plane</strong>, which the next step explains, has upright bricks: not hexagons, but near.</p>
      <p>For two weights the closest dot is found by trying a few. For the thousands of columns of a real layer nobody can: the problem is NP-hard.</p>`,
    tries: `Choose another algorithm in the settings, and hatch the targets for which it misses the closest dot.`,
    actions: [
      ["A target that rounding to nearest gets wrong", (f, d) => search(f, d, (m) => differ(m.codes.nearest, m.codes.closest) && m.losses.nearest > 1.5 * m.losses.closest)],
      ["One that nearest plane gets wrong", (f, d) => search(f, d, (m) => m.losses["nearest-plane"] > 1.05 * m.losses.closest)],
    ],
  },
  {
    id: "nearest-plane",
    title: "Nearest plane, step by step",
    view: { method: "nearest-plane", cells: false, stage: 1, limited: false, misses: false },
    shows: ["arrows", "lines"],
    settings: ["order", "hessian", "target"],
    numbers: ["steps"],
    text: `<p>The dots lie on parallel lines, one for each integer of one column (in <i>n</i> dimensions: on planes). So:</p>
      <ol><li><strong>Choose the nearest line.</strong> Divide how far the target is across the lines by their distance, and round. That is
      the first column’s integer.</li>
      <li><strong>Drop onto it</strong>, at a right angle. The foot is the new target.</li>
      <li><strong>On the line, choose the nearest dot</strong>: divide, round. That is the other column’s integer.</li></ol>
      <p>One division and one rounding a column, however many there are. The distance of the lines is a number of the triangular factor <b>R</b> of H, the
      <em>pivot</em> R<sub>jj</sub>, times the step.</p>`,
    tries: `Go through the steps below the picture, then drag the target.`,
  },
  {
    id: "gptq",
    title: "GPTQ does the same",
    view: { method: "nearest-plane", cells: false, stage: 2, limited: false, misses: false },
    shows: ["arrows", "lines"],
    settings: ["order", "hessian", "target"],
    numbers: ["steps"],
    text: `<p>GPTQ has no picture. It rounds a weight, and then <em>updates</em> the weights that are left, so that they make up for the error, by a
      column of the inverse Hessian’s Cholesky factor. Nearest plane, meanwhile, drops onto a line.</p>
      <p>It is the same step. The foot of the perpendicular <em>is</em> the point whose remaining weight GPTQ has just updated. The table beside computes both ways,
      each by its own matrices: the digits agree to the last or the one before, where sums were rounded differently.</p>
      <p>So GPTQ’s weights after each update are coordinates of a point in this picture, and all that is known of nearest plane is true of GPTQ.</p>`,
    tries: `Move the target, the arrows or the order, and watch the digits. Agreeing ones are bold.`,
  },
  {
    id: "order",
    title: "Which column first?",
    introduces: ["reversed"],
    view: { method: "nearest-plane", cells: true, stage: 2, limited: false, misses: false },
    shows: ["lines", "box"],
    settings: ["order", "hessian", "target"],
    numbers: ["orders", "answers"],
    text: `<p>Starting with the other column cuts the same dots into other lines, and the bricks into others: long ones or short ones. The sides of a brick are
      R<sub>jj</sub> times the step. Their product is the same in every order (it is the lattice’s area for one dot); the sum of their squares is not. It is small
      when the sides are alike.</p>
      <p>GPTQ’s act-order rounds the column of the largest input first. <em>Min-pivot</em> looks from the other end: it puts last the column with the smallest pivot, then the next to last,
      and so on. With two columns the two agree; with many they differ, and neither is always best.</p>`,
    tries: `Switch the order; then make one arrow much longer than the other.`,
    actions: [["Swap the order", (f) => ({ first: 1 - f.state.first })]],
  },
  {
    id: "bound",
    title: "A bound before rounding",
    view: { method: "nearest-plane", cells: false, stage: 2, limited: false, misses: false },
    shows: ["lines", "box", "circle"],
    settings: ["order", "hessian", "target"],
    numbers: ["bounds"],
    text: `<p>How wrong can it go? The nearest of evenly spaced lines is <strong>at most half their distance away</strong>: ½ R₂₂ <i>s</i>₂. On that line, the nearest dot is
      at most half the distance of dots away: ½ R₁₁ <i>s</i>₁. The two are at right angles, so Pythagoras adds them:</p>
      <p class="formula">loss ≤ ¼ (R₁₁² <i>s</i>₁² + R₂₂² <i>s</i>₂²)</p>
      <p>In other words: the target always lies in a <em>box</em> around its dot, whose sides are R<sub>jj</sub> <i>s</i><sub>j</sub>, and the bound is the square of half its diagonal.
      The target itself is not in the formula. So <strong>the bound is known before a weight is rounded</strong>, and holds for every row of the layer. On average the loss is a third of it.</p>`,
    tries: `Drag the target wherever you like. Both distances stay within 100 %. A corner of the box is the worst case.`,
    actions: [["To a corner of the box", (f) => cornerTarget(f)]],
  },
  {
    id: "clipping",
    title: "Clipping voids the bound",
    begins: (f) => ({ weight: beyond(f.state) }), // so that it is seen at once
    view: { method: "nearest-plane", cells: true, stage: 2, limited: true, low: -2, high: 1, misses: false },
    shows: ["lines", "box", "circle", "clipped"],
    settings: ["limits", "order", "hessian", "target"],
    numbers: ["bounds", "answers"],
    text: `<p>The bound needs one thing: that the nearest line is <em>there</em>. Store each integer in 2 bits, and only −2 … 1 exist: other lines are dashed, other dots hollow. A target is <strong>clipped</strong>
      when nearest plane wants an integer that does not exist and takes the last one instead. Clipped targets are hatched. One that is not hatched lies in the box of its dot, half a
      distance from its line at most. <strong>A hatched one is outside of its box, at any distance</strong>, for the hatched part of the picture has no end; and a formula of R and the steps, which knows no target, cannot say how far.
      So one clipped integer is enough: for its row there is no bound.</p>
      <p>There are two ways to be clipped:</p>
      <ul><li><strong>A weight beyond the last integer.</strong></li>
      <li><strong>Weights that are all in range.</strong> Dropping onto the first line moves the best value of the next column (GPTQ’s update): the weight was in range, and after the update it is not.</li></ul>
      <p>That is why nearplane calls a bound void where integers are clipped, says so layer by layer, and prefers integers without limits: large ones are rare, so an entropy code can store them at little cost.</p>`,
    tries: `Drag the target from a plain brick into the hatched part: the box stays behind and turns red, and the percentages pass 100. A wider range or larger steps push the hatched part outwards; larger steps also make the box larger.`,
    actions: [
      ["Beyond the last line", (f) => ({ weight: beyond(f.state) })],
      ["In range, and clipped all the same", (f, d) => search(f, d, clippedInside)],
      ["Take the limits away", () => ({ limited: false })],
    ],
  },
  {
    id: "steps",
    title: "Unequal steps",
    view: { method: "nearest-plane", cells: true, stage: 2, limited: false, misses: false },
    shows: ["arrows", "box", "circle"],
    settings: ["step", "order", "hessian", "target"],
    numbers: ["sides", "bounds"],
    text: `<p>A column’s step need not be the other’s. Finer steps make more dots, which cost bits: at high rate <i>s</i>₁ · <i>s</i>₂, the area of the box, sets the number of bits, whatever its shape.
      Of all boxes of one area, the square has the shortest diagonal. So <strong>steps in proportion to 1 / R<sub>jj</sub></strong> have the smallest bound, and the smallest mean loss, at the same bits.</p>
      <p>WaterSIC and ECLQ, nearplane’s default, store one step a column for this. What it gains, ½ log₂ of the arithmetic over the geometric mean of the squared sides, is in the report for every layer.</p>`,
    tries: `Press the button, and see bricks become squares.`,
    actions: [
      ["Steps ∝ 1 / R, same area", (f) => ({ step: balanced(f) })],
      ["Equal steps again", () => ({ step: [1, 1] })],
    ],
  },
  {
    id: "rate",
    introduces: ["rate"],
    title: "Rounding with a price",
    view: { method: "rate", cells: true, stage: 2, limited: false, misses: false },
    shows: ["box"],
    settings: ["rate", "order", "hessian", "target"],
    numbers: ["lengths", "answers"],
    text: `<p>In an entropy code a frequent integer is short: 0 may take one bit, 3 five. So let each column choose, of the two integers next to its best value, the one with the smaller
      <i>squared distance + ν · bits</i>. Cells of cheap integers grow and those of dear ones shrink: borders move away from ½.</p>
      <p>The residual may now lie up to <i>c</i> &gt; ½ steps from its line; a wider box takes the place of the first, and <em>its</em> bound holds. The bounds in ECLQ’s certificates are made of such sides.</p>`,
    tries: `Raise ν, or let code lengths grow faster: the cell of 0, 0 swallows its neighbours.`,
  },
  {
    id: "reduction",
    introduces: ["reduced"],
    title: "A better basis",
    view: { method: "reduced", cells: true, stage: 2, limited: false, misses: false },
    shows: ["arrows", "others"],
    settings: ["method", "hessian", "target"],
    numbers: ["reduction", "misses"],
    text: `<p>The same dots have other arrows: add a multiple of one to the other, and whole sums of the new arrows reach the same dots. <em>Lattice reduction</em> (LLL) finds short ones that are almost at right angles. Nearest plane
      on them has bricks that are almost square.</p>
      <p>Why does GPTQ not use it? The integers of the new arrows are sums of the columns’: limits on the columns’ integers can no longer be kept one by one, the arrows depend on the steps, and rows with steps of their own would need arrows of their own.
      And in many dimensions a good order of the columns gains almost all of it (measured in <code>nearplane/lattice/reduce.py</code>).</p>`,
    tries: `Make the arrows almost parallel, and compare the cells with those of nearest plane on the columns.`,
    actions: [["Almost parallel arrows", () => ({ large: 2.4, small: 0.08, angle: 38 })]],
  },
];

/** A target beyond the last line of the column that is rounded first. */
const beyond = ({ step, first, high }) => step.map((s, k) => (k === first ? high + 1.6 : 0.2) * s);

/** A target in a corner of the box around the dot chosen now; a hair inside, so that it keeps its dot. */
function cornerTarget({ own, codes, state }) {
  const dot = codes["nearest-plane"].map((z, k) => z * state.step[k]);
  const [[a, b], [, d]] = own.factor;
  const half = [0, 1].map((j) => 0.4999 * own.factor[j][j] * own.step[j]);
  const last = half[1] / d;
  const moved = [(half[0] - b * last) / a, last];
  return { weight: dot.map((x, c) => x + moved[own.places[c]]) };
}

/** Both weights round to allowed integers, and yet the loss is above the bound. */
function clippedInside({ state, losses, bound }) {
  const steps = state.weight.map((w, k) => w / state.step[k]);
  const inside = steps.every((w) => w > state.low - 0.5 && w < state.high + 0.5);
  return inside && losses["nearest-plane"] > 1.05 * bound;
}

/** Steps in proportion to 1 / R_jj whose product is that of the present ones. */
function balanced({ own, state }) {
  const area = state.step[0] * state.step[1];
  const scale = Math.sqrt(area * own.pivots[0] * own.pivots[1]);
  return own.pivots.map((pivot) => scale / pivot);
}
