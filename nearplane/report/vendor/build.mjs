// Bundles what charts.mjs takes of Observable Plot into plot.min.js, and the licences of all that is
// in it into plot.LICENSES.txt: npm install --no-save @observablehq/plot@0.6.17 esbuild@0.28.2 && node build.mjs
import { build } from "esbuild";
import { readFileSync, readdirSync, writeFileSync } from "node:fs";

const result = await build({
  entryPoints: ["charts.mjs"], bundle: true, minify: true, format: "iife", globalName: "Plot",
  target: "es2020", legalComments: "none", outfile: "plot.min.js", metafile: true,
});
const inside = new Set();
for (const input of Object.keys(result.metafile.outputs["plot.min.js"].inputs)) {
  const found = input.match(/^node_modules\/((?:@[^/]+\/)?[^/]+)\//);
  if (found && result.metafile.outputs["plot.min.js"].inputs[input].bytesInOutput) inside.add(found[1]);
}
const parts = [...inside].sort().map((name) => {
  const folder = `node_modules/${name}`;
  const { version, license } = JSON.parse(readFileSync(`${folder}/package.json`));
  const file = readdirSync(folder).find((each) => /^licen[cs]e/i.test(each));
  return `${name} ${version} (${license})\n\n${readFileSync(`${folder}/${file}`, "utf8").trim()}\n`;
});
writeFileSync("plot.LICENSES.txt", `plot.min.js holds parts of these packages.\n\n${parts.join(`\n${"-".repeat(78)}\n\n`)}`);
