// The editor of specs: checked as one types, with a way to each place that is wrong.

const WAIT_MS = 400;
const editor = document.getElementById("spec");
const place = document.getElementById("check");
let timer = 0;
let asked = 0;

async function check() {
  const number = ++asked;
  try {
    const answer = await fetch("/check", {
      method: "POST",
      headers: { "X-Form-Key": document.body.dataset.formKey },
      body: new URLSearchParams({ spec: editor.value }),
    });
    if (answer.status === 401) location.assign("/sign-in");
    if (number === asked && answer.ok) place.innerHTML = await answer.text();
  } catch {
    place.textContent = "The service does not answer; the spec is checked again with the next change.";
  }
}

/** The line on which a field such as train.steps stands, as far as its indentation tells; -1: nowhere. */
function lineOf(path) {
  const told = path.match(/^line (\d+)/);
  if (told) return Number(told[1]) - 1;
  const lines = editor.value.split("\n");
  let [from, indent, found] = [0, -1, -1];
  for (const part of path.replaceAll(/\[\d+\]/g, "").split(".")) {
    const next = lines.findIndex((line, index) => {
      const match = line.match(/^(\s*)(?:- )?["']?([^\s"':]+)["']?\s*:/);
      return index >= from && match && match[1].length > indent && match[2] === part;
    });
    if (next < 0) break;
    [found, from, indent] = [next, next + 1, lines[next].match(/^\s*/)[0].length];
  }
  return found;
}

place.addEventListener("click", (event) => {
  const path = event.target.closest("[data-place]")?.dataset.place;
  const line = path === undefined ? -1 : lineOf(path);
  if (line < 0) return;
  const lines = editor.value.split("\n");
  const begin = lines.slice(0, line).reduce((sum, one) => sum + one.length + 1, 0);
  editor.focus();
  editor.setSelectionRange(begin, begin + lines[line].length);
  editor.scrollTop = (line - 3) * Number.parseFloat(getComputedStyle(editor).lineHeight);
});

editor.addEventListener("input", () => {
  clearTimeout(timer);
  timer = setTimeout(check, WAIT_MS);
});
editor.addEventListener("keydown", (event) => {
  if ((event.ctrlKey || event.metaKey) && event.key === "Enter" && !event.repeat) editor.form.requestSubmit();
});
check();
