// Draws in the browser itself, with onnxruntime-web in a worker.
import { python } from "./copies.js";

export const live = false;
export const takesToken = false;
export const copies = [["Python", python]];
export const announced = "Drawn by this browser; nothing leaves it.";

const LOADING = { text: "Loading the model …", ready: false }, READY = { text: "Ready", ready: true };
let painter = null, tell = () => {};

/** A worker whose answers are promises; `ready` when it has loaded the model. */
function hired() {
  const worker = new Worker(new URL("./worker.js", import.meta.url), { type: "module" });
  const waiting = new Map();
  let count = 0;
  const settle = (id, { result, error }) => {
    const { resolve, reject } = waiting.get(id);
    waiting.delete(id);
    if (error === undefined) resolve(result);
    else reject(new Error(error));
  };
  worker.onmessage = ({ data }) => settle(data.id, data);
  worker.onerror = (event) => {
    event.preventDefault();
    for (const id of waiting.keys()) settle(id, { error: `The worker cannot run: ${event.message ?? "unknown"}` });
  };
  const ask = (kind, ...given) =>
    new Promise((resolve, reject) => {
      waiting.set(++count, { resolve, reject });
      worker.postMessage({ id: count, kind, given });
    });
  const dismiss = () => {
    worker.terminate();
    for (const { reject } of waiting.values()) reject(new DOMException("stopped", "AbortError"));
  };
  return { ask, dismiss, ready: ask("load") };
}

function theirs() {
  if (!painter) {
    painter = hired();
    tell(LOADING);
    painter.ready.then(() => tell(READY), ({ name, message }) => name === "AbortError" || tell({ text: message, ready: false }));
  }
  return painter;
}

/** What can be asked for. */
export async function open() {
  const response = await fetch(new URL("./model.json", import.meta.url));
  if (!response.ok) throw new Error("model.json is missing: copy the whole folder.");
  return response.json();
}

/** Tells how it stands: { text, ready }. */
export function watch(told) {
  tell = told;
  theirs();
}

/** The pictures of a request, as they come; a stop ends the worker, and the next request starts another. */
export async function* draw(request, signal) {
  const stop = () => {
    painter?.dismiss();
    painter = null;
  };
  signal.addEventListener("abort", stop, { once: true });
  try {
    await theirs().ready;
    for (let index = 0; index < request.n; index++) {
      signal.throwIfAborted();
      yield { index, begins: true };
      yield { index, src: URL.createObjectURL(await theirs().ask("picture", request, index)) };
    }
  } finally {
    signal.removeEventListener("abort", stop);
  }
}

/** One sample as numbers in network range, for those who compare. */
export async function sample(request, index) {
  await theirs().ready;
  return theirs().ask("sample", request, index);
}
