"""Show what a run did: report.json, the page that is made of it, and pages that compare runs.

- Comes in: numbers of a run from `nearplane.pipeline`; or a report.json, which may be old, damaged
  or a stranger's. Whatever is wrong with it raises `NearplaneError`.
- Goes out: report.json's content as a dictionary; a page as bytes, one self-contained HTML file
  that works without a network, and whose tables are readable without JavaScript; sentences.
- This folder reads no weights, and writes no files: `nearplane/export/report_page.py` does.

Read `report_page.py` first.

| file | what it does |
|---|---|
| report_json | what report.json holds: totals and one entry a layer |
| machine | what a run ran on |
| reading | a report.json that was read and checked |
| layer_lines | its layers as pages show them: kind, block, errors relative to the outputs' energy |
| findings | warnings, and the three sentences: what hurts, what would help, what to run next |
| kinds | sums over the layers of a kind |
| report_page | the page of one run |
| run_differences | what makes runs not comparable: other models, calibrations, texts |
| compare_page | the page, and the rows of a table, of several |
| strips | charts of one line for the terminal |
| embedding | data, scripts and styles put into a page safely |
| templates/ | the pages' HTML, styles and scripts |
| vendor/ | Observable Plot, which draws the charts, bundled; how it was made, and its licences |

To add a chart, add its data to `page_data` in `report_page.py`, a section with its question and
the sentence that answers it to `templates/report.html`, and a function to `templates/charts.js`.
"""
