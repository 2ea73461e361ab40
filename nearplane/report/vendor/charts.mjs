// What report.html uses of Observable Plot, and nothing else.
export {
  barX, dot, groupX, legend, lineY, plot, pointer, ruleX, ruleY, text, tip
} from "@observablehq/plot";
