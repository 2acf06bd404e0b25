// What a reader with weak eyes asks of the page, as WCAG 2.2 counts it: 4.5 for text (1.4.3), 3 for
// what tells states apart (1.4.11). Gives what has less, each as a line of text.
(() => {
  const parse = text => text.match(/[\d.]+/g).map(Number).concat(1).slice(0, 4);
  const over = (front, back) => front.slice(0, 3).map((c, i) => c * front[3] + back[i] * (1 - front[3])).concat(1);
  const light = ([r, g, b]) => [r, g, b].map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const contrast = (one, other) => {
    const [dark, bright] = [light(one), light(other)].sort((a, b) => a - b);
    return (bright + 0.05) / (dark + 0.05);
  };
  const probe = document.createElement("i");
  document.body.append(probe);
  probe.style.backgroundColor = "Canvas";
  const canvas = parse(getComputedStyle(probe).backgroundColor);
  probe.remove();

  const above = element => element ? [...above(element.parentElement), element] : [];
  const behind = element => above(element)
    .reduce((back, one) => over(parse(getComputedStyle(one).backgroundColor), back), canvas);
  const faint = [], told = (element, what, ratio) =>
    faint.push(`${what} ${ratio.toFixed(2)}: ${element.textContent.trim().slice(0, 60)}`);

  let texts = 0;
  for (const element of document.querySelectorAll("body *")) {
    const ownText = [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
    if (!ownText || !element.checkVisibility() || element.matches("script, style")) continue;
    texts++;
    const back = behind(element), ink = parse(getComputedStyle(element).color);
    ink[3] *= above(element).reduce((all, one) => all * Number(getComputedStyle(one).opacity), 1);
    const ratio = contrast(over(ink, back), back);
    if (ratio < 4.5) told(element, "text", ratio);
  }
  const port = document.querySelector("[data-port]"), was = port.className;
  for (const shade of ["good", "part", "bad", "none"]) {
    port.className = shade;
    const border = parse(getComputedStyle(port).borderLeftColor);
    const ratio = contrast(border, behind(port.parentElement));
    if (ratio < 3) told(port, shade, ratio);
  }
  port.className = was;
  if (texts < 10) faint.push(`only ${texts} texts are to be seen`);
  return { faint, dark: light(canvas) < 0.2 };
})()
