"use strict";
// The studio: plain script, one file, nothing from elsewhere. The key stays in this tab.

const $ = (id) => document.getElementById(id);
const state = { models: [], chosen: null, other: null, suggested: "", stop: null };
const KEY = "dreamfleet-key";
const needsKey = document.body.dataset.needsKey === "yes";

function headers() {
  const key = sessionStorage.getItem(KEY);
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function call(path, options = {}) {
  const answer = await fetch(path, { ...options, headers: { ...headers(), ...options.headers } });
  if (!answer.ok) {
    const body = await answer.json().catch(() => null);
    const error = new Error(body?.error?.message || `HTTP ${answer.status}`);
    error.status = answer.status;
    throw error;
  }
  return answer;
}

// Key

function askForKey(problem = "") {
  $("studio").hidden = true;
  $("forget").hidden = true;
  $("key-form").hidden = false;
  $("key-problem").textContent = problem;
  $("key").focus();
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem(KEY, $("key").value.trim());
  $("key").value = "";
  open();
});

$("forget").addEventListener("click", () => {
  sessionStorage.removeItem(KEY);
  askForKey();
});

async function open() {
  if (needsKey && !sessionStorage.getItem(KEY)) return askForKey();
  try {
    state.models = (await (await call("/v1/models")).json()).data;
  } catch (error) {
    if (error.status === 401) {
      sessionStorage.removeItem(KEY);
      return askForKey("This key is not known here.");
    }
    $("key-form").hidden = false;
    $("key-problem").textContent = error.message;
    return;
  }
  $("key-form").hidden = true;
  $("studio").hidden = false;
  $("forget").hidden = !needsKey;
  showSubjects();
  choose(state.models[0].id);
  $("prompt").focus();
}

// Subjects

// The subject's name; the id where two share a name.
function label(model) {
  const name = model.display_name || model.id;
  const alike = state.models.filter((own) => (own.display_name || own.id) === name);
  return alike.length > 1 ? model.id : name;
}

const seen = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    seen.unobserve(entry.target);
    loadThumbnail(entry.target);
  }
});

async function loadThumbnail(blank) {
  try {
    const answer = await call(`/v1/models/${encodeURIComponent(blank.dataset.model)}/thumbnail`);
    const image = document.createElement("img");
    image.alt = "";
    image.src = URL.createObjectURL(await answer.blob());
    blank.replaceWith(image);
  } catch { /* the letter stays */ }
}

function showSubjects() {
  const box = $("subjects");
  box.replaceChildren();
  $("filter").hidden = state.models.length <= 12;
  for (const model of state.models) {
    const choice = document.createElement("label");
    choice.className = "subject";
    choice.dataset.text = `${model.id} ${model.display_name} ${model.class_word}`.toLowerCase();
    const input = document.createElement("input");
    input.type = "radio";
    input.name = "subject";
    input.value = model.id;
    input.addEventListener("change", () => choose(model.id));
    const card = document.createElement("span");
    card.className = "card";
    const blank = document.createElement("span");
    blank.className = "blank";
    blank.dataset.model = model.id;
    blank.textContent = label(model).slice(0, 1);
    const name = document.createElement("span");
    name.className = "name";
    name.textContent = label(model);
    name.title = model.id;
    card.append(blank, name);
    choice.append(input, card);
    box.append(choice);
    if (model.has_thumbnail) seen.observe(blank);
  }
}

$("filter").addEventListener("input", () => {
  const wanted = $("filter").value.toLowerCase();
  for (const own of $("subjects").children) own.hidden = !own.dataset.text.includes(wanted);
});

function choose(id) {
  const model = state.models.find((own) => own.id === id);
  const prompt = $("prompt");
  if (!prompt.value.trim() || prompt.value === state.suggested) {
    prompt.value = model.token ? "a photo of {token} {class}" : "a photo of a dog";
    state.suggested = prompt.value;
  }
  state.chosen = model;
  $("problem").textContent = "";
  for (const input of document.querySelectorAll("#subjects input")) input.checked = input.value === id;
  showOthers();
  showAbout();
}

function showOthers() {
  const select = $("other"), before = select.value;
  select.replaceChildren(new Option("nobody", ""));
  for (const alias of Object.keys(state.chosen.aliases)) {
    select.append(new Option(`${state.chosen.id}@${alias}`, `${state.chosen.id}@${alias}`));
  }
  for (const model of state.models) {
    if (model.id === state.chosen.id) continue;
    select.append(new Option(label(model), model.id));
    for (const alias of Object.keys(model.aliases)) {
      select.append(new Option(`${model.id}@${alias}`, `${model.id}@${alias}`));
    }
  }
  if ([...select.options].some((option) => option.value === before)) select.value = before;
  showOther();
}

async function showOther() {
  const name = $("other").value;
  state.other = null;
  if (name) {
    const found = await call(`/v1/models/${encodeURIComponent(name)}`).then((own) => own.json()).catch(() => null);
    if (name !== $("other").value) return; // another one meanwhile
    state.other = found && { name, metrics: found.metrics };
  }
  showNumbers();
}

$("other").addEventListener("change", showOther);

// What is known of an adapter

const WITHOUT = ".without_adapter";

function showAbout() {
  const model = state.chosen;
  $("about").hidden = false;
  $("about-name").textContent = label(model);
  const facts = [];
  if (model.token) facts.push(`“${model.token} ${model.class_word}”`);
  if (model.rank) facts.push(`LoRA of rank ${model.rank}`);
  if (model.version) facts.push(`version ${model.version}`);
  const aliases = Object.entries(model.aliases).map(([alias, version]) => `@${alias} is ${version}`);
  $("about-text").textContent = [...facts, ...aliases].join(" · ");
  $("report").hidden = !model.has_report;
  showNumbers();
  showCurl();
}

const MEANINGS = {
  identity: "likeness to the photos, up to 1",
  clip_t: "likeness to the prompt, up to 1",
  diversity: "variety between pictures of one prompt, from 0",
};

// A row for each figure: of the adapter, of the one that it is compared with, of the bare base.
function showNumbers() {
  const own = state.chosen.metrics;
  const other = state.other?.metrics;
  const names = Object.keys(own).filter((name) => !name.endsWith(WITHOUT));
  const table = $("numbers");
  const heads = ["figure", state.chosen.id, ...(other ? [state.other.name] : []), "bare base"];
  table.tHead.rows[0].replaceChildren(
    ...heads.map((text) => Object.assign(document.createElement("th"), { textContent: text, scope: "col" })),
  );
  table.tBodies[0].replaceChildren();
  for (const name of names) {
    const row = table.tBodies[0].insertRow();
    row.insertCell().textContent = name;
    for (const value of [own[name], ...(other ? [other[name]] : []), own[name + WITHOUT]]) {
      row.insertCell().textContent = value === undefined ? "" : value.toFixed(3);
    }
    const meaning = table.tBodies[0].insertRow().insertCell();
    meaning.colSpan = heads.length;
    meaning.className = "soft";
    meaning.textContent = MEANINGS[name] || "";
  }
  table.hidden = !names.length;
}

$("report").addEventListener("click", async () => {
  try {
    const answer = await call(`/v1/models/${encodeURIComponent(state.chosen.id)}/report`);
    $("page").src = URL.createObjectURL(await answer.blob());
    $("report-name").textContent = label(state.chosen);
    $("shown").showModal();
  } catch (error) {
    $("problem").textContent = error.message;
  }
});

$("shown").addEventListener("close", () => {
  URL.revokeObjectURL($("page").src);
  $("page").removeAttribute("src");
});
$("close").addEventListener("click", () => $("shown").close());

// Requests

// The bare base, and adapters without words of their own, are asked with the chosen one's.
function prompted(model) {
  const own = state.models.find((one) => one.id === model.split("@")[0]);
  const prompt = $("prompt").value.trim();
  if (own?.class_word || !state.chosen.class_word) return prompt;
  return prompt.replaceAll("{token}", state.chosen.token).replaceAll("{class}", state.chosen.class_word);
}

function wish(model, seed) {
  const body = { model, prompt: prompted(model) };
  if (seed !== null) body.seed = seed;
  const number = (id) => ($(id).value === "" ? null : Number($(id).value));
  if (number("steps") !== null) body.num_inference_steps = number("steps");
  if (number("guidance") !== null) body.guidance_scale = number("guidance");
  if (number("strength") !== null && number("strength") !== 1) body.adapter_strength = number("strength");
  if ($("scheduler").value !== "ddim") body.scheduler = $("scheduler").value;
  if ($("negative").value) body.negative_prompt = $("negative").value;
  return body;
}

function showCurl(seed = null) {
  const typed = $("seed").value === "" ? seed : Number($("seed").value);
  const body = JSON.stringify(wish(state.chosen.id, typed), null, 1).replaceAll("'", "'\\''");
  const auth = needsKey ? ` \\\n  -H "Authorization: Bearer $DREAMFLEET_API_KEY"` : "";
  $("curl").textContent =
    `curl ${location.origin}/v1/images/generations${auth} \\\n  -H 'Content-Type: application/json' -d '${body}' |` +
    `\n  python3 -c 'import base64,json,sys; open("picture.png","wb").write(base64.b64decode(json.load(sys.stdin)["data"][0]["b64_json"]))'`;
}

$("draw").addEventListener("input", () => showCurl());
$("copy").addEventListener("click", async () => {
  try {
    await navigator.clipboard.writeText($("curl").textContent);
    $("copied").textContent = "copied";
  } catch {
    getSelection().selectAllChildren($("curl"));
    $("copied").textContent = "selected: press Ctrl+C";
  }
});

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    text += value;
    let end;
    while ((end = text.indexOf("\n\n")) >= 0) {
      const data = text.slice(0, end).split("\n").find((line) => line.startsWith("data: "));
      text = text.slice(end + 2);
      if (data && data !== "data: [DONE]") yield JSON.parse(data.slice(6));
    }
  }
}

function place(model) {
  const figure = document.createElement("figure");
  const image = document.createElement("div");
  image.className = "blank";
  const bar = document.createElement("progress");
  const caption = document.createElement("figcaption");
  caption.textContent = `${model}: waiting`;
  figure.append(image, bar, caption);
  $("pictures").append(figure);
  return { figure, bar, caption, model };
}

function show(spot, encoded, format, done) {
  const image = document.createElement("img");
  image.alt = done ? `${spot.model}: ${$("prompt").value}` : "unfinished picture";
  image.onload = () => image.classList.toggle("small", image.naturalWidth <= 256);
  image.src = `data:image/${format};base64,${encoded}`;
  spot.figure.firstChild.replaceWith(image);
}

// A link that saves a finished picture.
function keep(spot, event) {
  const link = document.createElement("a");
  link.href = `data:image/${event.output_format};base64,${event.b64_json}`;
  link.download = `${spot.model}_${event.seed}.${event.output_format}`;
  link.textContent = "save";
  return link;
}

async function drawOne(model, seed, signal) {
  const spot = place(model);
  const started = performance.now();
  const body = { ...wish(model, seed), stream: true, partial_images: 6 };
  try {
    const answer = await call("/v1/images/generations", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify(body),
      signal,
    });
    for await (const event of events(answer.body)) {
      if (event.error) throw new Error(event.error.message);
      if (event.type === "image_generation.progress") {
        spot.bar.max = event.steps;
        spot.bar.value = event.step;
        spot.caption.textContent = `${model}: step ${event.step} of ${event.steps}`;
      } else {
        const done = event.type === "image_generation.completed";
        show(spot, event.b64_json, event.output_format, done);
        if (done) {
          spot.bar.remove();
          const seconds = ((performance.now() - started) / 1000).toFixed(1);
          spot.caption.textContent = `${model} `;
          const soft = document.createElement("span");
          soft.className = "soft";
          soft.textContent = `seed ${event.seed} · ${seconds} s · `;
          spot.caption.append(soft, keep(spot, event));
          spot.figure.dataset.done = "yes";
        }
      }
    }
  } catch (error) {
    spot.figure.remove();
    if (error.name !== "AbortError") $("problem").textContent = error.message;
  }
}

$("draw").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (state.stop) return;
  $("problem").textContent = "";
  $("pictures").replaceChildren();
  const seed = $("seed").value === "" ? crypto.getRandomValues(new Uint32Array(1))[0] : Number($("seed").value);
  const names = [state.chosen.id, $("other").value].filter(Boolean);
  state.stop = new AbortController();
  switched($("go"), $("stop"));
  $("told").textContent = "drawing";
  showCurl(seed);
  await Promise.all(names.map((name) => drawOne(name, seed, state.stop.signal)));
  state.stop = null;
  switched($("stop"), $("go"));
  const done = document.querySelectorAll("#pictures figure[data-done]").length;
  $("told").textContent = `${done} of ${names.length} drawn, seed ${seed}`;
});

// One button for another; the keyboard's place goes with it, which a disabled one would lose.
function switched(from, to) {
  const here = document.activeElement === from;
  to.disabled = false;
  if (here) to.focus();
  from.disabled = true;
}

$("stop").addEventListener("click", () => state.stop?.abort());
document.addEventListener("keydown", (event) => {
  if ($("studio").hidden || $("shown").open) return;
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) $("draw").requestSubmit();
  if (event.key === "Escape") state.stop?.abort();
});

open();
