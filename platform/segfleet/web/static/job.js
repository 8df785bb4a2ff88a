// The job's page: its log, and the slider over its pictures.

const KEPT_CHARS = 2_000_000;
// A log that is silent is looked at less often.
const LOOK_SOONEST_MS = 1500;
const LOOK_LATEST_MS = 6000;
// What a terminal would obey, and the marks that turn the direction of writing.
const ESCAPES = /\x1b(?:\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\x07\x1b]*(?:\x07|\x1b\\)?|[ -/]*[0-~])/g;
const CONTROLS = /[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]/g;

const log = document.getElementById("log");
const search = document.getElementById("log-search");
const only = document.getElementById("log-only");
const follow = document.getElementById("log-follow");
const count = document.getElementById("log-count");
const decoder = new TextDecoder();
let text = "";

function cleanLine(line) {
  const whole = line.endsWith("\r") ? line.slice(0, -1) : line;
  return whole.slice(whole.lastIndexOf("\r") + 1).replace(ESCAPES, "").replace(CONTROLS, "");
}

function appendMarked(line, wanted) {
  const low = line.toLowerCase();
  let at = 0;
  for (let found = low.indexOf(wanted); found >= 0; found = low.indexOf(wanted, at)) {
    const mark = document.createElement("mark");
    mark.textContent = line.slice(found, found + wanted.length);
    log.append(line.slice(at, found), mark);
    at = found + wanted.length;
  }
  log.append(line.slice(at) + "\n");
}

function show() {
  const wanted = search.value.toLowerCase();
  const lines = text.split("\n").map(cleanLine);
  const matching = wanted ? lines.filter((line) => line.toLowerCase().includes(wanted)) : lines;
  const shown = wanted && only.checked ? matching : lines;
  count.textContent = wanted ? `${matching.length} lines match` : "";
  log.textContent = text ? "" : "Nothing has been written yet.";
  if (text && !wanted) log.textContent = shown.join("\n");
  if (text && wanted) shown.forEach((line) => appendMarked(line, wanted));
  if (follow.checked) log.scrollTop = log.scrollHeight;
}

async function read() {
  let offset = 0;
  let pause = LOOK_SOONEST_MS;
  for (;;) {
    let isMore = false;
    if (!document.hidden) {
      try {
        const answer = await fetch(`${log.dataset.log}?offset=${offset}`, { cache: "no-store" });
        if (answer.status === 401 || answer.status === 403) return;
        if (answer.ok) {
          const data = new Uint8Array(await answer.arrayBuffer());
          offset = Number(answer.headers.get("X-Next-Offset"));
          isMore = data.length > 0;
          text = (text + decoder.decode(data, { stream: true })).slice(-KEPT_CHARS);
          if (isMore || !log.textContent) show();
          if (answer.headers.get("X-Log-End") === "true") return;
        }
      } catch {
        // The service is away for a while; the page says so.
      }
    }
    pause = isMore ? LOOK_SOONEST_MS : Math.min(pause * 1.25, LOOK_LATEST_MS);
    if (!isMore) await new Promise((resolve) => setTimeout(resolve, pause));
  }
}

search.addEventListener("input", show);
only.addEventListener("change", show);
follow.addEventListener("change", show);
// Who scrolls up reads; who comes back to the end follows.
log.addEventListener("scroll", () => {
  follow.checked = log.scrollTop + log.clientHeight >= log.scrollHeight - 8;
});

addEventListener("input", (event) => {
  const slider = event.target.closest("[data-slider]");
  if (!slider) return;
  const sheets = [...slider.parentElement.querySelectorAll(".sheet")];
  sheets.forEach((sheet, index) => (sheet.hidden = index !== Number(event.target.value)));
  slider.querySelector("output").textContent = sheets[event.target.value].dataset.step;
});

read();
