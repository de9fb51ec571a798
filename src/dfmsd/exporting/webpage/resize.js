// Pillow's bilinear resizing, bit for bit: antialiased when it shrinks, in fixed point, first the rows, then the columns.

const BITS = 22; // of a weight's fraction

/** Resize RGBA pixels to a width and height; returns RGB, three values a pixel. */
export function resize({ data, width, height }, newWidth, newHeight) {
  const across = weights(width, newWidth), down = weights(height, newHeight), row = 3 * newWidth;
  const narrow = new Uint8Array(height * row), small = new Uint8Array(newHeight * row);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < row; x++) {
      const { start, values } = across[Math.trunc(x / 3)];
      narrow[y * row + x] = mean(data, 4 * (y * width + start) + (x % 3), 4, values);
    }
  }
  for (let y = 0; y < newHeight; y++) {
    const { start, values } = down[y];
    for (let x = 0; x < row; x++) small[y * row + x] = mean(narrow, start * row + x, row, values);
  }
  return small;
}

/** Return the weighted mean of every step-th value, rounded. */
function mean(data, start, step, values) {
  let sum = 1 << (BITS - 1);
  for (let i = 0, from = start; i < values.length; i++, from += step) sum += values[i] * data[from];
  return sum >> BITS;
}

/** Return for each new pixel the weights of the old ones from `start` on: a triangle, at least 2 old pixels wide. */
function weights(oldLength, newLength) {
  const scale = oldLength / newLength, reach = Math.max(scale, 1);
  return Array.from({ length: newLength }, (_, place) => {
    const center = (place + 0.5) * scale;
    const start = Math.max(0, Math.trunc(center - reach + 0.5));
    const end = Math.min(oldLength, Math.trunc(center + reach + 0.5));
    const triangle = Float64Array.from({ length: end - start }, (_, i) =>
      Math.max(0, 1 - Math.abs((i + start - center + 0.5) * (1 / reach))),
    );
    const sum = triangle.reduce((total, value) => total + value, 0);
    return { start, values: Int32Array.from(triangle, (value) => Math.trunc((value / sum) * 2 ** BITS + 0.5)) };
  });
}

/** Round as Python does: halves to the even neighbor. */
export function round(value) {
  const below = Math.floor(value);
  return value - below === 0.5 ? below + (below % 2) : Math.round(value);
}
