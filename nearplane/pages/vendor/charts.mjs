// What report.html uses of Observable Plot, and nothing else.
export {
  barX, barY, binX, dot, group, groupX, lineY, plot, pointer, pointerX, rectY, ruleX, ruleY,
  selectFirst, selectLast, sort, stackX, text, tip, crosshairX
} from "@observablehq/plot";
