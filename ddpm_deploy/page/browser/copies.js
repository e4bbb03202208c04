// A request as a program that draws the same pictures.

import { isDefault } from "./dom.js";

const quoted = JSON.stringify; // a JSON string is a Python string

function condition({ labels: known }, { labels, n }) {
  const asked = Array.from({ length: n }, (_, i) => known.classes.indexOf(labels[i % labels.length]));
  return `condition={${quoted(known.name)}: [${asked.join(", ")}]}`;
}

/** Python that saves the pictures of a request with the package. */
export function python(request, model) {
  const { n, solver, steps, seed, labels, prompt, guidance } = request;
  const plan = isDefault(request, model) ? [] : [`solver=${quoted(solver)}`, `steps=${steps}`];
  const given = [`${n}`, ...plan, `seed=${seed}`];
  if (labels.length) given.push(condition(model, request));
  if (prompt) given.push(`prompt=${quoted(prompt)}`);
  if (guidance !== 1) given.push(`guidance=${guidance}`);
  return `from ddpm_deploy import Sampler
from ddpm_deploy.images import to_pil

with Sampler.load(${quoted(model.bundle)}, digest=${quoted(model.digest)}) as sampler:
    samples = sampler.sample(${given.join(", ")})
for i, picture in enumerate(to_pil(samples, (${model.bounds.join(", ")}))):
    picture.save(f"picture-{i}.png")
`;
}
