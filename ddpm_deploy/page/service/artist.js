// Lets the service draw, which gave this page.
import { PATH, body, curl, python } from "./copies.js";
import { events } from "./events.js";

export const live = true;
export const takesToken = true;
export const copies = [["curl", curl], ["Python", python]];
export const announced = "";

const STEPS = [1, 2, 4, 6, 8, 10, 12, 16, 20, 25, 50, 100, 250, 1000];
const DISTILLED = ["lcm", "consistency"]; // for models that were trained for them
const PREVIEWS = 24; // of a picture; more than an eye can follow would only cost
const NOT_READY = { text: "Not ready", ready: false };
const POLL_MS = 1000;
const KEPT = "ddpm-deploy token";
const GAUGE = /^ddpm_deploy_(ready|queued_samples|held_samples) (\S+)$/gm;

export const tokenGiven = () => sessionStorage.getItem(KEPT);
export const setToken = (token) => sessionStorage.setItem(KEPT, token);

const here = (path) => new URL(path, document.baseURI);
const authorised = () => (tokenGiven() ? { Authorization: `Bearer ${tokenGiven()}` } : {});

let model;

/** What can be asked of the model; throws an error of status 401 where a token is needed. */
export async function open() {
  const response = await fetch(here("v1/models"), { headers: authorised() });
  if (!response.ok) throw await refusal(response);
  const [{ id, sample_shape, classes, words, guided, timesteps, solvers, default: own, limits }] = (await response.json()).data;
  const most = Math.min(timesteps, limits.steps);
  const steps = [...new Set([own.steps, ...STEPS])].filter((each) => each <= most).sort((a, b) => a - b);
  const offered = solvers.filter((name) => !DISTILLED.includes(name) || name === own.solver);
  model = {
    name: id,
    shape: sample_shape,
    labels: classes && { classes, required: !guided },
    prompt: words && { vocabulary: words, required: !guided },
    guided,
    default: own,
    solvers: Object.fromEntries(offered.map((name) => [name, steps])),
    max_n: limits.n,
    needsToken: Boolean(tokenGiven()),
  };
  return model;
}

/** Tells how the service stands, as long as somebody looks. */
export function watch(tell) {
  let ask = gauges;
  const look = async () => {
    if (!document.hidden) {
      const found = await ask().catch(() => ({ text: "No answer", ready: false }));
      if (found) tell(found);
      else ask = readiness; // a proxy may well keep the metrics to itself
    }
    setTimeout(look, POLL_MS);
  };
  look();
}

async function gauges() {
  const response = await fetch(here("metrics"));
  if (!response.ok) return null;
  const { ready, queued_samples: queued, held_samples: held } = Object.fromEntries(
    [...(await response.text()).matchAll(GAUGE)].map(([, name, value]) => [name, Number(value)]),
  );
  const text = held ? `Drawing ${held - queued}, ${queued} waiting` : "Ready, nothing waiting";
  return ready ? { text, ready: true } : NOT_READY;
}

const readiness = async () => ((await fetch(here("readyz"))).ok ? { text: "Ready", ready: true } : NOT_READY);

/** The pictures of a request, on their way, done, or failed: { index, error }. */
export async function* draw(request, signal) {
  const response = await fetch(here(PATH), {
    method: "POST",
    headers: { "Content-Type": "application/json", ...authorised() },
    body: JSON.stringify({ ...body(request, model), stream: true, ...previews(request) }),
    signal,
  });
  if (!response.ok) throw await refusal(response);
  let left = request.n;
  for await (const event of events(response.body)) {
    if (event.type === "error" && event.index === undefined) throw failure(event.error.code, event.error.message);
    if (["error", "image_generation.completed"].includes(event.type)) left--;
    yield news(event);
  }
  if (left) throw new TypeError("the stream broke off");
}

function previews({ live: wanted, steps }) {
  return wanted ? { partial_images: Math.min(PREVIEWS, steps) } : {};
}

function news({ type, ahead, index, step, steps, b64_json, error }) {
  if (type === "error") return { index, error: failure(error.code, error.message) };
  if (type === "image_generation.queued") return { ahead };
  const src = `data:image/png;base64,${b64_json}`;
  return type === "image_generation.completed" ? { index, src } : { index, step, steps, src };
}

async function refusal(response) {
  const after = Number(response.headers.get("Retry-After"));
  const said = await response.json().catch(() => ({}));
  return failure(response.status, said.error?.message ?? `The service answers with status ${response.status}.`, after);
}

const failure = (status, message, retryAfterS) => Object.assign(new Error(message), { status, retryAfterS });
