// Draws in a thread of its own, so that the page stays alive.
import * as ort from "./ort.wasm.bundle.min.mjs";
import { guidances, label, noises, nulls, tables, tensor } from "./feeds.js";
import { rgba } from "./pixels.js";
import { encode } from "./tokenizer.js";

const MOST_THREADS = 4;
const here = (name) => new URL(name, import.meta.url).href;
const json = async (name) => (await fetched(name)).json();

ort.env.wasm.wasmPaths = { wasm: here("ort-wasm-simd-threaded.wasm") };
ort.env.wasm.numThreads = self.crossOriginIsolated ? Math.min(MOST_THREADS, navigator.hardwareConcurrency) : 1;

let model, sampler, encoder;
const plans = new Map();

async function fetched(name) {
  const response = await fetch(here(name));
  if (!response.ok) throw new Error(`${name} is missing (status ${response.status}): copy the whole folder.`);
  return response;
}

const session = async (name) =>
  ort.InferenceSession.create(new Uint8Array(await (await fetched(name)).arrayBuffer()), { logSeverityLevel: 3 });

async function load() {
  model = await json("model.json");
  sampler = await session("sampler.onnx");
  if (model.prompt) encoder = await session("encoder.onnx");
}

async function planOf(solver, steps) {
  if (!plans.has(solver)) plans.set(solver, await json(`plan.${solver}.json`));
  return plans.get(solver)[steps];
}

const made = (feeds, names) =>
  Object.fromEntries(names.filter((name) => name in feeds).map((name) => [name, new ort.Tensor(...feeds[name])]));

async function encoded(prompt) {
  const tokens = encode(prompt, model.prompt);
  return encoder.run(made({ tokens: tensor("int64", tokens, [1, tokens.length]) }, encoder.inputNames));
}

/** The sample (C, H, W) in network range. */
async function sample({ solver, steps, seed, guidance, labels, prompt }, index) {
  const plan = await planOf(solver, steps);
  const steering = { ...nulls(model.conditions), ...(labels.length ? label(model.labels, labels, index) : {}) };
  const feeds = { ...tables(plan), ...noises(plan, model.shape, seed, index), ...guidances(plan, guidance), ...steering };
  const read = prompt || (model.prompt && model.prompt.required) ? await encoded(prompt) : {};
  const { samples } = await sampler.run({ ...made(feeds, sampler.inputNames), ...read });
  if (!samples.data.every(Number.isFinite)) throw new Error("The network predicted no numbers for this.");
  return samples.data;
}

async function picture(request, index) {
  const drawn = rgba(await sample(request, index), model.shape, model.bounds);
  const canvas = new OffscreenCanvas(drawn.width, drawn.height);
  canvas.getContext("2d").putImageData(drawn, 0, 0);
  return canvas.convertToBlob({ type: "image/png" });
}

const work = { load, picture, sample };

self.onmessage = async ({ data: { id, kind, given } }) => {
  try {
    self.postMessage({ id, result: await work[kind](...given) });
  } catch (error) {
    self.postMessage({ id, error: error.message ?? String(error) });
  }
};
