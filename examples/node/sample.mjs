// Draw samples in Node.js with one call: node sample.mjs MODEL SAMPLES [X_T]
// MODEL: a sampler file for onnxruntime-cpu with a default plan. SAMPLES: raw float32, written.
// X_T: raw float32, read, as many samples as it holds; without it ten samples from fresh Gaussian noise.
// A model with classes draws the first ten of them in turn.
import { readFile, writeFile } from "node:fs/promises";
import * as ort from "onnxruntime-web";

function gaussian(count) {
  const radius = () => Math.sqrt(-2 * Math.log(1 - Math.random()));
  return Float32Array.from({ length: count }, () => radius() * Math.cos(2 * Math.PI * Math.random()));
}

async function readFloats(path) {
  return new Float32Array(new Uint8Array(await readFile(path)).buffer);
}

const [model, out, given] = process.argv.slice(2);
ort.env.wasm.numThreads = 1;
const session = await ort.InferenceSession.create(await readFile(model), { logSeverityLevel: 3 });
const shape = session.inputMetadata.find((input) => input.name === "x_T").shape.slice(1);
const size = shape.reduce((a, b) => a * b);
const x_T = given ? await readFloats(given) : gaussian(10 * size);
const count = x_T.length / size;
const feeds = { x_T: new ort.Tensor("float32", x_T, [count, ...shape]) };
if (session.inputNames.includes("labels")) {
  feeds.labels = new ort.Tensor("int64", BigInt64Array.from({ length: count }, (_, i) => BigInt(i % 10)), [count]);
}
const { samples } = await session.run(feeds);
await writeFile(out, new Uint8Array(samples.data.buffer, samples.data.byteOffset, samples.data.byteLength));
console.log(`wrote ${samples.dims.join(" x ")} samples to ${out}`);
