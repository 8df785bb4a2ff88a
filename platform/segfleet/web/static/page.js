// What every page does in the browser: live parts, local times, keys, questions before what cannot be undone.

const away = document.querySelector(".away");

function localTimes(root) {
  const today = new Date().toDateString();
  for (const element of root.querySelectorAll("time[datetime]")) {
    const moment = new Date(element.dateTime);
    if (Number.isNaN(moment.getTime())) continue;
    const options = moment.toDateString() === today ? { timeStyle: "medium" } : { dateStyle: "medium", timeStyle: "short" };
    element.textContent = new Intl.DateTimeFormat(undefined, options).format(moment);
    element.title = moment.toLocaleString();
  }
}

/** What scrolls can be reached by the keyboard, and what does not is no stop on the way. */
function reachScrolling(root) {
  for (const part of root.querySelectorAll(".tall, .scroll")) {
    const isScrolling = part.scrollWidth > part.clientWidth || part.scrollHeight > part.clientHeight;
    if (isScrolling) part.tabIndex = 0;
    else part.removeAttribute("tabindex");
  }
}

/** Whether somebody is writing or choosing in it: what is under the hands is not replaced. */
function isInUse(element) {
  const active = document.activeElement;
  const isField = active instanceof HTMLInputElement || active instanceof HTMLSelectElement;
  return (element.contains(active) && isField) || (getSelection()?.toString() && element.contains(getSelection().anchorNode));
}

/** By which an element of a part is known again when the part has been replaced. */
function markOf(element) {
  return [element.tagName, element.getAttribute("href") ?? element.form?.getAttribute("action") ?? element.className].join(" ");
}

/** What is typed or ticked, and sent by a button of its own. */
function fieldsOf(part) {
  return [...part.querySelectorAll("form input:not([type=hidden], [type=range], [type=search], [type=file])")];
}

function nameOf(field) {
  return [field.form.getAttribute("action"), field.name].join(" ");
}

function isChanged(field) {
  return field.value !== field.defaultValue || field.checked !== field.defaultChecked;
}

function replaceContent(element, html) {
  const scrolled = [...element.querySelectorAll(".tall, .scroll, .classes")].map((part) => [part.scrollTop, part.scrollLeft]);
  const focused = element.contains(document.activeElement) ? markOf(document.activeElement) : null;
  const here = element.querySelector("tr.here a")?.getAttribute("href");
  const typed = new Map(fieldsOf(element).filter(isChanged).map((field) => [nameOf(field), [field.value, field.checked]]));
  element.innerHTML = html;
  for (const field of fieldsOf(element)) {
    if (typed.has(nameOf(field))) [field.value, field.checked] = typed.get(nameOf(field));
  }
  localTimes(element);
  reachScrolling(element);
  [...element.querySelectorAll(".tall, .scroll, .classes")].forEach((part, index) => {
    if (scrolled[index]) [part.scrollTop, part.scrollLeft] = scrolled[index];
  });
  if (focused) {
    const reachable = [...element.querySelectorAll("a, button, summary, [tabindex]")];
    reachable.find((one) => markOf(one) === focused)?.focus({ preventScroll: true });
  }
  if (here) element.querySelector(`a[href="${CSS.escape(here)}"]`)?.closest("tr")?.classList.add("here");
  element.dispatchEvent(new CustomEvent("replaced", { bubbles: true }));
}

async function keepLive(element) {
  let tag = "";
  const every = Number(element.dataset.every) * 1000;
  for (let failures = 0; !("over" in element.dataset) && !element.querySelector("[data-over]"); ) {
    await new Promise((resolve) => setTimeout(resolve, Math.min(every * 2 ** failures, 30000)));
    if (document.hidden || isInUse(element)) continue;
    try {
      const answer = await fetch(element.dataset.live, { headers: tag ? { "If-None-Match": tag } : {}, cache: "no-store" });
      if (answer.status === 401) {
        location.assign("/sign-in");
        return;
      }
      if (answer.status !== 304 && !answer.ok) throw new Error(String(answer.status));
      if (answer.ok) {
        const html = await answer.text();
        tag = answer.headers.get("ETag") ?? "";
        if (!isInUse(element)) replaceContent(element, html);
      }
      failures = 0;
      away.hidden = true;
    } catch {
      failures = Math.min(failures + 1, 6);
      away.hidden = failures < 2;
    }
  }
}

function moveInList(by) {
  const rows = [...document.querySelectorAll("[data-row]")];
  if (!rows.length) return;
  const now = rows.findIndex((row) => row.classList.contains("here"));
  const next = Math.max(0, Math.min(rows.length - 1, now < 0 ? 0 : now + by));
  rows.forEach((row, index) => row.classList.toggle("here", index === next));
  rows[next].scrollIntoView({ block: "nearest" });
}

const KEYS = {
  "/": () => document.querySelector("input[type=search]")?.focus(),
  j: () => moveInList(1),
  k: () => moveInList(-1),
  Enter: () => document.querySelector("tr.here a")?.click(),
  g: () => location.assign("/"),
  n: () => document.querySelector('.nav a[href="/submit"]')?.click(),
  "?": () => document.querySelector("dialog.keys").showModal(),
};

addEventListener("keydown", (event) => {
  const isField = event.target instanceof Element && event.target.closest("input, select, textarea, button, a, dialog, summary");
  if (event.key === "Escape" && isField) event.target.blur();
  if (event.ctrlKey || event.metaKey || event.altKey || isField || !Object.hasOwn(KEYS, event.key)) return;
  event.preventDefault();
  KEYS[event.key]();
});

addEventListener("submit", (event) => {
  const question = event.target.dataset.confirm;
  if (question && !confirm(question)) event.preventDefault();
});

localTimes(document);
reachScrolling(document);
addEventListener("resize", () => reachScrolling(document));
document.querySelectorAll("[data-live]").forEach(keepLive);
