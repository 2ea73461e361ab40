// Cells: every pixel of a canvas has the colour of the point that its place is rounded to.

/** The channels of a colour #rrggbb, as a canvas keeps a pixel. */
function pixel(colour) {
  const [r, g, b] = [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
  return (255 << 24) | (b << 16) | (g << 8) | r;
}

/**
 * Fill a canvas with the cells of `codeAt(x, y)`, a place of the picture.
 *
 * Cells are convex: a square whose four corners round to one point lies in its cell. Other squares
 * are cut in four, down to `finest` pixels. `palette` has four colours, chosen by the parity of two
 * integers, so that neighbours differ, and four stronger ones for the point `chosen`.
 */
export function drawCells(canvas, view, codeAt, { palette, chosen, finest }) {
  const { width, height } = canvas;
  const context = canvas.getContext("2d", { willReadFrequently: true }); // in memory: pixels are set here
  const image = context.createImageData(width, height);
  const pixels = new Uint32Array(image.data.buffer);
  const colours = palette.map(pixel);
  const known = new Map();
  const codeOf = (i, j) => {
    const key = j * (width + 64) + i;
    if (!known.has(key)) known.set(key, codeAt(...view.placeOfPixel(i, j)));
    return known.get(key);
  };
  const colourOf = (code) => {
    const parity = (code[0] & 1) + 2 * (code[1] & 1);
    const own = chosen && code[0] === chosen[0] && code[1] === chosen[1];
    return { colour: colours[parity + (own ? 4 : 0)], missed: code[2] };
  };
  const fill = (left, top, size, code) => {
    const { colour, missed } = colourOf(code);
    for (let j = top; j < Math.min(top + size, height); j++) {
      for (let i = left; i < Math.min(left + size, width); i++) {
        const hatched = missed && (i + j) % 8 < 2;
        pixels[j * width + i] = hatched ? colours[8] : colour;
      }
    }
  };
  const same = (a, b) => a[0] === b[0] && a[1] === b[1] && a[2] === b[2] && a[3] === b[3];
  const square = (left, top, size) => {
    const code = codeOf(left, top);
    const uniform =
      size <= finest ||
      [[size, 0], [0, size], [size, size]].every(([x, y]) => same(code, codeOf(left + x, top + y)));
    if (uniform) return fill(left, top, size, code);
    for (const x of [0, size / 2]) for (const y of [0, size / 2]) square(left + x, top + y, size / 2);
  };
  for (let top = 0; top < height; top += 32) {
    for (let left = 0; left < width; left += 32) square(left, top, 32);
  }
  context.putImageData(image, 0, 0);
}
