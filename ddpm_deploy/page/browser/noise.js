// The noise of ddpm_deploy.noise: numpy's Philox4x64-10 and the Box-Muller transform, the same integers bit for bit.

export const INITIAL = 0, STEP = 1; // the streams: x_T, and z of a plan row

const ROUNDS = 10;
const MULTIPLIERS = [0xd2e7470ee14c6c93n, 0xca5a826395121157n];
const WEYL = [0x9e3779b97f4a7c15n, 0xbb67ae8584caa73bn];
const LOW = 0xffffffffn;
const HALF = 2 ** -32, TURN = 2 * Math.PI * HALF;

const word = (value) => BigInt.asUintN(64, value);

function block(key, counter) {
  let [k0, k1] = key, [c0, c1, c2, c3] = counter;
  for (let round = 0; round < ROUNDS; round++) {
    const first = c0 * MULTIPLIERS[0], second = c2 * MULTIPLIERS[1];
    [c0, c1, c2, c3] = [(second >> 64n) ^ c1 ^ k0, word(second), (first >> 64n) ^ c3 ^ k1, word(first)];
    k0 = word(k0 + WEYL[0]);
    k1 = word(k1 + WEYL[1]);
  }
  return [c0, c1, c2, c3];
}

/** `count` words of one stream, as numpy's `random_raw` gives them. seed, sample, row: whole numbers or BigInts. */
export function words(seed, sample, row, stream, count) {
  const key = [BigInt(seed), BigInt(sample)], drawn = new BigUint64Array(4 * Math.ceil(count / 4));
  for (let i = 0; i < drawn.length; i += 4) {
    drawn.set(block(key, [BigInt(i / 4 + 1), 0n, BigInt(row), BigInt(stream)]), i);
  }
  return drawn.subarray(0, count);
}

/** `count` numbers of one stream as float32, written to `out` where it is given. */
export function normal(seed, sample, row, stream, count, out = new Float32Array(count)) {
  words(seed, sample, row, stream, Math.ceil(count / 2)).forEach((r, p) => {
    const radius = Math.sqrt(-2 * Math.log((Number(r >> 32n) + 1) * HALF)), angle = Number(r & LOW) * TURN;
    out[2 * p] = radius * Math.cos(angle);
    if (2 * p + 1 < count) out[2 * p + 1] = radius * Math.sin(angle);
  });
  return out;
}
