"""The web page: it asks the JSON endpoint, and shows where each word looks.

Everything is in one file: the page works without any other host. Text goes in as text nodes only.
"""

PAGE = r"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Translate</title>
<style>
:root { color-scheme: light dark; --ink: #1b1f24; --soft: #5b6570; --line: #d5dae0; --paper: #fff;
  --back: #f4f6f8; --accent: #0b61c4; --heat: 11, 97, 196; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8ebee; --soft: #9aa5b1; --line: #39424c;
  --paper: #1b2026; --back: #12161a; --accent: #6cb0ff; --heat: 108, 176, 255; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink);
  font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 64rem; margin: 0 auto; padding: 1.25rem 1rem 3rem; }
header { display: flex; flex-wrap: wrap; gap: 0 1rem; align-items: baseline; }
h1 { font-size: 1.4rem; margin: 0 0 .75rem; }
#model, .facts, label.note { color: var(--soft); font-size: .9rem; }
textarea { width: 100%; min-height: 7rem; padding: .75rem; font: inherit; color: inherit;
  background: var(--paper); border: 1px solid var(--line); border-radius: .5rem; resize: vertical; }
.bar { display: flex; flex-wrap: wrap; gap: .5rem 1rem; align-items: center; margin: .75rem 0; }
button { font: inherit; padding: .45rem 1.2rem; border: 0; border-radius: .5rem; cursor: pointer;
  background: var(--accent); color: var(--paper); }
button:disabled { opacity: .5; cursor: default; }
:focus-visible { outline: 2px solid var(--accent); outline-offset: 2px; }
#error { color: var(--bad); margin: .5rem 0; }
article { background: var(--paper); border: 1px solid var(--line); border-radius: .5rem;
  padding: .75rem 1rem; margin: .75rem 0; overflow-wrap: anywhere; }
article p { margin: .15rem 0; }
p.translation { font-size: 1.15rem; }
.word { border-radius: .25rem; padding: .1rem .12rem; cursor: default; }
.word.chosen { box-shadow: inset 0 -2px var(--accent); }
summary { cursor: pointer; color: var(--soft); font-size: .9rem; margin-top: .4rem; }
.scroll { overflow-x: auto; padding-top: .5rem; }
table { border-collapse: collapse; font-size: .8rem; }
th { font-weight: normal; padding: .15rem .4rem; text-align: right; white-space: nowrap; }
thead th { vertical-align: bottom; padding: .4rem 0; }
thead th span { writing-mode: vertical-rl; transform: rotate(180deg); }
td { min-width: 1.7rem; height: 1.7rem; border: 1px solid var(--line); }
</style>
</head>
<body>
<main>
<header><h1>Translate</h1><span id="model"></span></header>
<form id="form">
<textarea id="text" dir="auto" aria-label="Text, one sentence a line" autofocus
 placeholder="One sentence a line"></textarea>
<div class="bar"><button id="go">Translate</button>
<label class="note"><input type="checkbox" id="attention" checked>
 show where each word looks</label>
<span class="facts" id="time" role="status"></span></div>
</form>
<p id="error" role="alert"></p>
<div id="results" aria-live="polite"></div>
</main>
<script>
"use strict";
const $ = (id) => document.getElementById(id);
const BATCH = 16;  // sentences of a request

function element(name, className, text) {
  const node = document.createElement(name);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

function heat(node, weight) {
  node.style.background = weight === null ? "" : `rgba(var(--heat), ${weight})`;
}

function wordLine(className, words) {
  const line = element("p", className);
  line.dir = "auto";
  const nodes = words.map((word, number) => {
    if (number) line.append(" ");
    const node = element("span", "word", word);
    node.tabIndex = 0;
    line.append(node);
    return node;
  });
  return [line, nodes];
}

/* Hovering or focusing a word shades those of the other language that it goes with. */
function connect(nodes, others, weightsOf) {
  nodes.forEach((node, number) => {
    const weights = weightsOf(number);
    const most = Math.max(...weights, 1e-9);
    const show = () => {
      node.classList.add("chosen");
      others.forEach((other, place) => heat(other, 0.75 * weights[place] / most));
    };
    const hide = () => {
      node.classList.remove("chosen");
      others.forEach((other) => heat(other, null));
    };
    node.addEventListener("pointerenter", show);
    node.addEventListener("pointerleave", hide);
    node.addEventListener("focus", show);
    node.addEventListener("blur", hide);
  });
}

function heatMap(found) {
  const table = element("table"), head = table.createTHead().insertRow();
  head.append(element("th"));
  for (const word of found.source_words) {
    const cell = element("th");
    cell.scope = "col";
    cell.append(element("span", "", word));
    head.append(cell);
  }
  const body = table.createTBody();
  found.weights.forEach((row, number) => {
    const line = body.insertRow(), name = element("th", "", found.target_words[number]);
    name.scope = "row";
    line.append(name);
    row.forEach((weight, place) => {
      const cell = line.insertCell();
      heat(cell, weight);
      cell.title = `${found.target_words[number]} looks at ${found.source_words[place]}: `
        + `${Math.round(100 * weight)} %`;
    });
  });
  const details = element("details"), scroll = element("div", "scroll");
  details.append(element("summary", "", "Heat map of the attention"), scroll);
  scroll.append(table);
  details.open = true;
  return details;
}

function show(line, answer) {
  const article = element("article"), found = answer.attention;
  if (found && found.weights.length) {
    const [source, sourceNodes] = wordLine("source", found.source_words);
    const [target, targetNodes] = wordLine("translation", found.target_words);
    connect(targetNodes, sourceNodes, (number) => found.weights[number]);
    connect(sourceNodes, targetNodes, (number) => found.weights.map((row) => row[number]));
    article.append(source, target);
  } else {
    for (const [name, text] of [["source", line], ["translation", answer.translation]]) {
      const part = element("p", name, text);
      part.dir = "auto";
      article.append(part);
    }
  }
  const cut = answer.cut ? ", cut: it is too long" : "";
  article.append(element("p", "facts", `score ${answer.score.toFixed(2)}${cut}`));
  if (found && found.weights.length) article.append(heatMap(found));
  $("results").append(article);
}

async function ask(lines) {
  const response = await fetch("translate", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ text: lines, attention: $("attention").checked }),
  });
  const value = await response.json();
  if (!response.ok) throw new Error(value.error);
  return value.translations;
}

$("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  const lines = $("text").value.split("\n").filter((line) => line.trim());
  $("results").replaceChildren();
  $("error").textContent = $("time").textContent = "";
  $("go").disabled = true;
  const began = performance.now();
  try {
    for (let start = 0; start < lines.length; start += BATCH) {
      const part = lines.slice(start, start + BATCH);
      (await ask(part)).forEach((answer, number) => show(part[number], answer));
    }
    $("time").textContent = `${Math.round(performance.now() - began)} ms`;
  } catch (error) {
    $("error").textContent = error instanceof TypeError
      ? "The server does not answer." : error.message;
  } finally {
    $("go").disabled = false;
  }
});

$("text").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("form").requestSubmit();
});

fetch("healthz").then((response) => response.json()).then((value) => {
  $("model").textContent = value.model;
}).catch(() => {});

/* A link may bring its text: /?text=... */
const given = new URLSearchParams(location.search).get("text");
if (given) {
  $("text").value = given;
  $("form").requestSubmit();
}
</script>
</body>
</html>
"""
