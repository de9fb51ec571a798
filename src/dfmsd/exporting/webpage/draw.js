// Boxes with names and scores over a picture, as sharp as the screen.

export const title = (one, labels) => labels[one.class] ?? `class ${one.class}`;

/** Draw objects into a canvas that covers the picture; size is that of the image, in which their boxes are. */
export function draw(canvas, objects, labels, size) {
  const { clientWidth: width, clientHeight: height } = canvas, pen = canvas.getContext("2d");
  [canvas.width, canvas.height] = [width * devicePixelRatio, height * devicePixelRatio];
  pen.scale(devicePixelRatio, devicePixelRatio);
  pen.font = "600 11px system-ui, sans-serif";
  pen.textBaseline = "middle";
  const scale = [width / size[0], height / size[1]];
  for (const one of objects.toReversed()) { // the best on top
    const [left, top, right, bottom] = one.box.map((value, side) => value * scale[side % 2]);
    const color = `oklch(0.5 0.18 ${(one.class * 222.5 + 25) % 360})`; // the golden angle keeps classes apart
    for (const [line, style] of [[4, "rgb(255 255 255 / 0.6)"], [2, color]]) {
      [pen.lineWidth, pen.strokeStyle] = [line, style];
      pen.strokeRect(left, top, right - left, bottom - top);
    }
    const text = `${title(one, labels)} ${one.score.toFixed(2)}`, wide = pen.measureText(text).width + 6;
    const x = Math.max(0, Math.min(left - 1, width - wide)), y = top >= 15 ? top - 15 : top;
    pen.fillStyle = color;
    pen.fillRect(x, y, wide, 15);
    pen.fillStyle = "white";
    pen.fillText(text, x + 3, y + 8);
  }
}
