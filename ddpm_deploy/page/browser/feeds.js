// What one run of the sampler graph is fed with: noise by the seed, a compiled plan, and what shall be drawn.
import { INITIAL, STEP, normal } from "./noise.js";

const ARRAYS = {
  float32: Float32Array, float64: Float64Array, bool: Uint8Array, int8: Int8Array, uint8: Uint8Array,
  int16: Int16Array, int32: Int32Array, int64: BigInt64Array, uint64: BigUint64Array,
};

export const product = (axes) => axes.reduce((a, b) => a * b, 1);

/** A tensor as the runtime takes it, before it is one: [type, values, axes]. */
export function tensor(type, values, axes) {
  const number = type.endsWith("int64") ? BigInt : Number;
  return [type, ARRAYS[type].from(values, number), axes];
}

/** The tables of a plan: t (N,), predict (N, 2), clip (N, 2), update (N, K, K+3), perhaps log_variance (N, 2). */
export function tables(plan) {
  const rows = plan.t.length, state = plan.state, pair = [rows, 2];
  const axes = { t: [rows], predict: pair, clip: pair, update: [rows, state, state + 3], log_variance: pair };
  const infinite = plan.clip.map((bound, i) => bound ?? (i % 2 ? Infinity : -Infinity));
  const values = { ...plan, clip: infinite };
  return Object.fromEntries(
    Object.keys(axes).filter((name) => plan[name]).map((name) => [name, tensor("float32", values[name], axes[name])]),
  );
}

/** x_T (1, *S), and z (N, 1, *S), or zeros that broadcast where the plan draws none. */
export function noises(plan, shape, seed, sample) {
  const size = product(shape), rows = plan.t.length;
  const x_T = ["float32", normal(seed, sample, 0, INITIAL, size), [1, ...shape]];
  if (!plan.draws_noise.some(Boolean)) {
    return { x_T, noise: ["float32", new Float32Array(rows), [rows, 1, ...shape.map(() => 1)]] };
  }
  const drawn = new Float32Array(rows * size);
  plan.draws_noise.forEach((draws, row) => {
    if (draws) normal(seed, sample, row, STEP, size, drawn.subarray(row * size, (row + 1) * size));
  });
  return { x_T, noise: ["float32", drawn, [rows, 1, ...shape]] };
}

/** Weights (N, 1). */
export const guidances = (plan, weight) => ({
  guidance: ["float32", new Float32Array(plan.t.length).fill(weight), [plan.t.length, 1]],
});

/** Each condition without what it stands for, (1, ...) each. */
export function nulls(conditions) {
  const full = ({ shape, null: value }) => Array(product(shape)).fill(value);
  return Object.fromEntries(
    conditions.filter((each) => each.null !== null)
      .map((each) => [each.name, tensor(each.dtype, full(each), [1, ...each.shape])]),
  );
}

/** The class of a sample: those that are asked for, in turn. */
export function label({ name, dtype, classes }, asked, sample) {
  return { [name]: tensor(dtype, [classes.indexOf(asked[sample % asked.length])], [1]) };
}
