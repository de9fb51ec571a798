// The page: images from files, the clipboard, an example and the camera; boxes, scores and times.

import { draw, title } from "./draw.js";

const byId = (id) => document.getElementById(id);
const [stage, frame, picture, boxes, hint, status] = ["stage", "frame", "picture", "boxes", "hint", "status"].map(byId);
const [file, camera, example, score, lowest] = ["file", "camera", "example", "score", "lowest"].map(byId);
const [result, list] = ["result", "objects"].map(byId);
const LARGEST = 2048; // pixels of the longer side that are shown

const labels = (await (await fetch("labels.txt")).text()).trimEnd().split("\n");
const worker = new Worker("worker.js", { type: "module" });
let answer = null; // receives what the worker says about the image that it has
let found = { objects: [], milliseconds: 0, size: [1, 1] };
let stream = null; // of the camera, while it is on
let turn = Promise.resolve(); // of the images that wait for the worker

worker.onmessage = ({ data }) => {
  if (answer) return answer(data);
  if (data.error) return say(`The model cannot be loaded: ${data.error}`);
  file.disabled = example.disabled = false;
  camera.disabled = !navigator.mediaDevices; // which browsers offer to https:// and localhost only
  say(camera.disabled ? "Ready. The camera needs https:// or localhost." : "Ready.");
};
worker.onerror = () => say("The model cannot be loaded: this browser cannot run its worker; try a newer one.");

function say(text) {
  status.textContent = text;
}

/** Detect the objects of an image file or a frame, one after the other, and show them. */
function detect(source, name) {
  return (turn = turn.then(() => look(source)).catch((error) => say(`${name} cannot be read: ${error.message}`)));
}

async function look(source) {
  const options = { imageOrientation: "from-image", premultiplyAlpha: "none", colorSpaceConversion: "none" };
  const bitmap = await createImageBitmap(source, options);
  const size = [bitmap.width, bitmap.height], shrink = Math.min(1, LARGEST / Math.max(...size));
  const [width, height] = size.map((length) => Math.max(1, Math.round(length * shrink)));
  const shown = await createImageBitmap(bitmap, { resizeWidth: width, resizeHeight: height, resizeQuality: "high" });
  const said = await new Promise((resolve) => {
    answer = resolve;
    worker.postMessage(bitmap, [bitmap]);
  });
  if (said.error) throw new Error(said.error);
  [picture.width, picture.height] = [width, height];
  picture.getContext("2d").drawImage(shown, 0, 0);
  shown.close();
  found = { ...said, size };
  frame.style.setProperty("--aspect", width / height);
  hint.hidden = true;
  frame.hidden = result.hidden = false;
  show();
}

/** Show the objects that reach the lowest score. */
function show() {
  const objects = found.objects.filter((one) => one.score >= score.valueAsNumber);
  lowest.value = score.valueAsNumber.toFixed(2);
  list.replaceChildren(...objects.map(row));
  if (hint.hidden) {
    draw(boxes, objects, labels, found.size);
    const count = `${objects.length} object${objects.length === 1 ? "" : "s"}`;
    picture.ariaLabel = `Image with ${count}`;
    say(`${count} in ${found.milliseconds.toFixed(0)} ms`);
  }
}

function row(one) {
  const cells = [title(one, labels), one.score.toFixed(3), ...one.box.map((value) => value.toFixed(1))];
  const line = document.createElement("tr");
  line.append(
    ...cells.map((text, place) => Object.assign(document.createElement(place ? "td" : "th"), { textContent: text })),
  );
  line.firstChild.scope = "row";
  return line;
}

// The camera

async function film() {
  camera.disabled = true; // while the browser asks
  try {
    stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } finally {
    camera.disabled = false;
  }
  camera.setAttribute("aria-pressed", "true");
  status.ariaLive = "off"; // nobody wants to hear every frame
  const video = Object.assign(document.createElement("video"), { srcObject: stream, muted: true, playsInline: true });
  await video.play();
  while (stream?.active) {
    await detect(video, "The camera");
    await new Promise(requestAnimationFrame); // waits while the page is hidden
  }
  stop();
}

function stop() {
  stream?.getTracks().forEach((track) => track.stop());
  stream = null;
  camera.setAttribute("aria-pressed", "false");
  status.ariaLive = "polite";
}

// What the user does

function open(files) {
  if (!files.length || file.disabled) return;
  stop();
  detect(files[0], files[0].name ?? "The example");
}

file.onchange = () => {
  open([...file.files]);
  file.value = ""; // so that the same file can be chosen again
};
example.onclick = async () => open([await (await fetch("test.png")).blob()]);
camera.onclick = () => (stream ? stop() : film().catch((error) => say(`No camera: ${error.message}`)));
score.oninput = show;
addEventListener("resize", show);
addEventListener("paste", (event) => open(event.clipboardData.files));
addEventListener("dragover", (event) => {
  event.preventDefault();
  stage.classList.add("over");
});
addEventListener("dragleave", () => stage.classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  stage.classList.remove("over");
  open(event.dataTransfer.files);
});
