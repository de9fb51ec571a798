// Runs the network beside the page: takes an ImageBitmap, answers with its objects.

import * as ort from "./ort.wasm.bundle.min.mjs";
import { resize, round } from "./resize.js";

const model = load();
model.then(() => postMessage({ ready: true }), (error) => postMessage({ error: error.message }));

async function load() {
  const settings = await (await fetch("preprocess.json")).json();
  return { settings, session: await ort.InferenceSession.create(settings.model) };
}

onmessage = async ({ data: bitmap }) => {
  const start = performance.now();
  try {
    const objects = await detect(pixels(bitmap));
    postMessage({ objects, milliseconds: performance.now() - start });
  } catch (error) {
    postMessage({ error: error.message });
  }
};

function pixels(bitmap) {
  const { width, height } = bitmap;
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return context.getImageData(0, 0, width, height);
}

/** Return the objects of an image, best first: class, score, and box in pixels of the image. */
async function detect(image) {
  const { settings, session } = await model;
  const { size } = settings.preprocess, longer = Math.max(image.width, image.height);
  const [width, height] = [image.width, image.height].map((length) => Math.max(1, round((length * size) / longer)));
  const values = tensor(resize(image, width, height), width, settings.preprocess);
  const [input] = Object.keys(settings.input);
  const { boxes, scores, labels } = await session.run({ [input]: new ort.Tensor("float32", values, [1, 3, size, size]) });
  const ends = [width, height, width, height], scale = [image.width / width, image.height / height];
  const objects = Array.from(scores.data, (score, place) => ({
    class: Number(labels.data[place]),
    score,
    box: ends.map((end, side) => Math.min(Math.max(boxes.data[4 * place + side], 0), end) * scale[side % 2]),
  }));
  return objects.filter(({ class: label, box }) => label >= 0 && box[2] > box[0] && box[3] > box[1]);
}

/** Arrange RGB pixels as three planes of the input, with padding at the right and at the bottom. */
function tensor(rgb, width, { size, padding, mean, std }) {
  const values = new Float32Array(3 * size * size);
  for (let channel = 0; channel < 3; channel++) {
    const plane = values.subarray(channel * size * size, (channel + 1) * size * size);
    const normalize = (value) => (value / 255 - mean[channel]) / std[channel];
    plane.fill(normalize(padding[channel]));
    for (let pixel = 0; 3 * pixel < rgb.length; pixel++) {
      plane[Math.floor(pixel / width) * size + (pixel % width)] = normalize(rgb[3 * pixel + channel]);
    }
  }
  return values;
}
