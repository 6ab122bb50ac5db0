"""The look of the report."""

# The series colours keep a contrast of 3 to 1 with their background, and differ for readers who do
# not tell red from green.
CSS = """
:root{--back:#fff;--card:#f5f6f8;--text:#1d2330;--dim:#5b6475;--line:#dfe3ea;--mark:#ffe2b8;
--series-0:#0b6bcb;--series-1:#c8510b;--series-2:#0a7d5c;--series-3:#a8408f;--series-4:#8a6d00;
--series-5:#5a6577;--series-6:#2f6f9f;--series-7:#b3261e;--series-8:#b9c1cc}
@media(prefers-color-scheme:dark){:root{--back:#12151c;--card:#1b2029;--text:#e6e9f0;--dim:#9aa4b6;
--line:#303745;--mark:#6b4310;--series-0:#63b3ff;--series-1:#ff9d5c;--series-2:#3fcf9f;
--series-3:#e58fd0;--series-4:#e0c341;--series-5:#a9b4c6;--series-6:#8fc7f0;--series-7:#ff8a80;--series-8:#4b5563}}
*{box-sizing:border-box}
body{margin:0;background:var(--back);color:var(--text);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1240px;margin:0 auto;padding:20px 16px 60px}
h1{font-size:1.6rem;margin:.2em 0 .6em}
h2{font-size:1.15rem;margin:2em 0 .7em}
p{margin:.4em 0}
code{font-size:.9em;overflow-wrap:anywhere}
.cards,.charts{display:grid;gap:14px;grid-template-columns:repeat(auto-fill,minmax(min(100%,340px),1fr))}
.card{background:var(--card);border-left:4px solid var(--c);border-radius:6px;padding:12px 16px}
.card h2{margin:0;font-size:1rem;overflow-wrap:anywhere}
.card p{color:var(--dim)}
.card .big{color:var(--text);margin:.3em 0}
.card strong{font-size:1.9rem;line-height:1.1;font-variant-numeric:tabular-nums}
figure{margin:0;background:var(--card);border-radius:6px;padding:10px 10px 4px;min-width:0}
figcaption{font-weight:600;font-size:.9rem}
svg{display:block;width:100%;height:auto}
svg text{fill:var(--dim);font-size:11px;font-variant-numeric:tabular-nums}
.grid{stroke:var(--line);fill:none}
polyline{fill:none;stroke:var(--c);stroke-width:1.8;stroke-linejoin:round}
circle{fill:var(--c)}
.legend{display:flex;flex-wrap:wrap;gap:2px 14px;font-size:.8rem;color:var(--dim);margin:.2em 0}
.legend b{color:var(--text);font-variant-numeric:tabular-nums}
.key{overflow-wrap:anywhere}
.key::before{content:"";display:inline-block;width:14px;margin-right:5px;vertical-align:middle;
border-top:3px solid var(--c)}
.key.dashed::before{border-top-style:dashed}
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:.86rem;font-variant-numeric:tabular-nums}
th,td{text-align:left;padding:5px 14px 5px 0;border-bottom:1px solid var(--line);vertical-align:top}
th{color:var(--dim);font-weight:600;white-space:nowrap}
.samples{display:grid;gap:14px;grid-template-columns:repeat(auto-fill,minmax(min(100%,520px),1fr))}
dl{background:var(--card);border-radius:6px;margin:0;padding:10px 14px;display:grid;
grid-template-columns:max-content 1fr;gap:3px 12px;font-size:.9rem;align-content:start}
dt{color:var(--dim);max-width:9em;overflow-wrap:anywhere}
dd{margin:0;overflow-wrap:anywhere;min-width:0}
.pictures{display:grid;gap:14px}
.pictures img{display:block;max-width:100%;min-width:min(720px,60em)}
mark{background:var(--mark);color:inherit;border-radius:3px;padding:0 2px}
.label{font-size:.85rem;color:var(--dim);margin:.8em 0 .2em}
.bar{display:flex;height:20px;border-radius:4px;overflow:hidden;margin-bottom:.8em}
.bar i{background:var(--c);min-width:1px}
details{margin-top:1.6em}
summary{cursor:pointer;font-weight:600}
@media(max-width:480px){main{padding:12px 10px 40px}dl{grid-template-columns:1fr;gap:0}
dt{max-width:none;font-size:.78rem;margin-top:.35em}}
"""
