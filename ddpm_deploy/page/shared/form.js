// The form: it offers what the model takes, and turns what is chosen into a request.
import { $, make } from "./dom.js";

const MOST_CHIPS = 24;
const MOST_WORDS = 60;
const SEEDS = 2 ** 32;
const SUGGESTED_GUIDANCE = 2;
const calm = matchMedia("(prefers-reduced-motion: reduce)");

export function makeForm(model, live) {
  const labels = labelField(model.labels);
  const stepsOf = () => model.solvers[$("solver").value];
  let stopping = null;

  if (model.prompt) showPrompt(model.prompt);
  if (model.guided) showGuidance();
  $("solver").append(...Object.keys(model.solvers).map((name) => make("option", { value: name, textContent: name })));
  $("n").max = model.max_n;
  $("n").value = Math.min(4, model.max_n);
  $("live-field").hidden = !live;
  $("live").checked = live && !calm.matches;

  function nameSteps() {
    const steps = stepsOf()[$("steps").value];
    $("steps-value").textContent = steps;
    $("steps").setAttribute("aria-valuetext", steps);
  }

  /** Offer the steps of the solver, and choose the one nearest to these. */
  function offerSteps(wanted) {
    const choices = stepsOf(), distance = (steps) => Math.abs(Math.log(steps / wanted));
    $("steps").max = choices.length - 1;
    $("steps").disabled = choices.length === 1;
    $("steps").value = choices.indexOf(choices.reduce((a, b) => (distance(b) < distance(a) ? b : a)));
    nameSteps();
  }

  function request() {
    const asked = labels.chosen(), prompt = model.prompt ? $("prompt").value.trim() : "";
    return {
      n: $("n").valueAsNumber,
      solver: $("solver").value,
      steps: stepsOf()[$("steps").value],
      seed: $("seed").value ? Number($("seed").value) : Math.floor(Math.random() * SEEDS),
      guidance: model.guided && (asked.length || prompt) ? $("guidance").valueAsNumber : 1,
      labels: asked,
      prompt,
      live: $("live").checked,
    };
  }

  /** Put a request into the form, to be changed and drawn again. */
  function show({ n, solver, steps, seed, guidance, labels: asked, prompt }) {
    Object.assign($("n"), { value: n });
    $("solver").value = solver;
    offerSteps(steps);
    $("seed").value = seed;
    if (model.guided && (asked.length || prompt)) setGuidance(guidance);
    if (model.prompt) {
      $("prompt").value = prompt;
      $("prompt").oninput();
    }
    labels.choose(asked);
    $("draw").focus();
  }

  function onDraw(draw) {
    $("form").onsubmit = async (event) => {
      event.preventDefault();
      if (stopping) return;
      labels.check();
      checkSeed();
      checkCount(labels.chosen().length);
      if (!$("form").reportValidity()) return;
      stopping = new AbortController();
      busy(true);
      try {
        await draw(request(), stopping.signal);
      } finally {
        stopping = null;
        busy(false);
      }
    };
  }

  function busy(is) {
    const hadFocus = document.activeElement === $("stop");
    $("stop").hidden = !is;
    $("draw").setAttribute("aria-disabled", is);
    $("form").setAttribute("aria-busy", is);
    if (hadFocus) $("draw").focus();
  }

  const stop = () => stopping?.abort(new DOMException("stopped", "AbortError"));
  $("stop").onclick = stop;
  document.addEventListener("keydown", (event) => event.key === "Escape" && !$("copy-dialog").open && stop());
  $("solver").onchange = () => offerSteps(stepsOf().includes(wanted()) ? wanted() : model.default.steps);
  $("steps").oninput = nameSteps;
  $("form").onkeydown = submitsOnEnter;
  $("form").addEventListener("input", forgive);
  const wanted = () => Number($("steps-value").textContent);

  $("solver").value = model.default.solver;
  offerSteps(model.default.steps);
  $("form").hidden = false;
  return { show, onDraw };
}

function checkSeed() {
  const wrong = $("seed").value && !Number.isSafeInteger(Number($("seed").value));
  $("seed").setCustomValidity(wrong ? `A whole number up to ${Number.MAX_SAFE_INTEGER}` : "");
}

function checkCount(labels) {
  const few = labels > $("n").valueAsNumber;
  $("n").setCustomValidity(few ? `At least ${labels}, one for each label` : "");
}

/** Whatever was wrong may be right now; the next request tells. A field that stays wrong keeps the form from asking. */
function forgive() {
  for (const field of $("form").elements) field.setCustomValidity("");
}

function submitsOnEnter(event) {
  if (event.key !== "Enter" || event.shiftKey || event.target !== $("prompt")) return;
  event.preventDefault();
  $("form").requestSubmit();
}

function showPrompt({ vocabulary, required }) {
  $("prompt-field").hidden = false;
  $("prompt").required = required;
  const known = new Set(vocabulary);
  const words = vocabulary.length <= MOST_WORDS ? `It knows these words: ${vocabulary.join(", ")}.` : "";
  const unknown = () => [...new Set($("prompt").value.toLowerCase().split(/\s+/).filter((word) => word && !known.has(word)))];
  $("prompt").oninput = () => {
    const warning = unknown().length ? `It was not taught: ${unknown().join(", ")}.` : "";
    $("prompt-hint").textContent = [warning, words, required ? "" : "Empty draws anything."].filter(Boolean).join(" ");
  };
  $("prompt").oninput();
}

function showGuidance() {
  $("guidance-field").hidden = false;
  $("guidance").oninput = () => setGuidance($("guidance").valueAsNumber);
  setGuidance(SUGGESTED_GUIDANCE);
}

function setGuidance(weight) {
  $("guidance").value = weight;
  const text = weight === 1 ? "1, as it is" : weight === 0 ? "0, not at all" : String(weight);
  $("guidance-value").textContent = text;
  $("guidance").setAttribute("aria-valuetext", text);
}

/** How classes are chosen: nothing where there are none, chips where there are few, a text where there are many. */
function labelField(labels) {
  if (!labels) return { chosen: () => [], choose: () => {}, check: () => {} };
  const several = "Several are drawn in turn.", none = labels.required ? "" : " None draws any.";
  return labels.classes.length <= MOST_CHIPS ? chips(labels, several + none) : typed(labels, several + none);
}

function chips({ classes, required }, hint) {
  const boxes = classes.map((value) => make("input", { type: "checkbox", value }));
  $("chips").append(...boxes.map((box) => make("label", { className: "chip" }, box, make("span", { textContent: box.value }))));
  $("labels-hint").textContent = hint;
  $("labels-field").hidden = false;
  if (required) boxes[0].checked = true;
  return {
    chosen: () => boxes.filter((box) => box.checked).map((box) => box.value),
    choose: (asked) => boxes.forEach((box) => (box.checked = asked.includes(box.value))),
    check: () => boxes[0].setCustomValidity(required && !boxes.some((box) => box.checked) ? "Choose a label" : ""),
  };
}

function typed({ classes, required }, hint) {
  const input = $("label"), words = () => input.value.split(",").map((word) => word.trim()).filter(Boolean);
  $("classes").append(...classes.map((value) => make("option", { value })));
  $("label-hint").textContent = `${hint} Put commas between them.`;
  $("label-field").hidden = false;
  input.required = required;
  const unknown = () => words().find((word) => !classes.includes(word));
  return {
    chosen: words,
    choose: (asked) => (input.value = asked.join(", ")),
    check: () => input.setCustomValidity(unknown() ? `There is no label ${unknown()}` : ""),
  };
}
