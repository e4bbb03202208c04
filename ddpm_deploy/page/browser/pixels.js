// A sample in network range as a picture, rounded as ddpm_deploy.images does it, in float32 and to even.

export function levels(samples, [low, high]) {
  const scale = Math.fround(255 / (high - low));
  return Uint8ClampedArray.from(samples, (value) => Math.fround(Math.fround(value - Math.fround(low)) * scale));
}

/** RGBA of a grey, colour or RGBA sample (C, H, W). */
export function rgba(samples, [channels, height, width], bounds) {
  const planes = levels(samples, bounds), size = height * width, pixels = new Uint8ClampedArray(4 * size);
  const plane = channels === 1 ? [0, 0, 0] : [0, 1, 2];
  for (let i = 0; i < size; i++) {
    plane.forEach((p, c) => (pixels[4 * i + c] = planes[p * size + i]));
    pixels[4 * i + 3] = channels === 4 ? planes[3 * size + i] : 255;
  }
  return new ImageData(pixels, width, height);
}
