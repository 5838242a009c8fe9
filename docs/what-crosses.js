// The interactive part of what-crosses.md. The formula is that of research/theory/gain.py; a test compares them.
(() => {
  "use strict";
  const page = document.getElementById("what-crosses");
  if (!page) return;
  const WIDTH = 50; // inputs of the teacher and of the student, decisive or not
  const STUDENTS = [
    { kind: "no-kd", name: "labels alone", colour: "currentColor" },
    { kind: "plain", name: "plain teacher", colour: "#0072b2" },
    { kind: "focused", name: "focused teacher", colour: "#c0508f" },
  ];
  const upTo = (most) => Array.from({ length: most + 1 }, (_, count) => count);
  const SLIDERS = [
    { name: "general", label: "General factors (both see them)", values: upTo(16), start: 8 },
    { name: "teacher-only", label: "Teacher-only factors", values: upTo(16), start: 8 },
    { name: "student-only", label: "Student-only factors", values: upTo(8), start: 0 },
    { name: "labelled", label: "Labelled pairs", values: [75, 100, 150, 200, 300, 500, 1000], start: 100 },
    { name: "unlabelled", label: "Unlabelled pairs", values: [0, 100, 300, 700, 1500, 3100, 6300], start: 100 },
  ];
  const sum = (numbers) => numbers.reduce((total, number) => total + number, 0);

  /** Predicted accuracy of a student in percent. Factors are seen wholly or not at all, both losses weigh 1. */
  function accuracy(kind, world) {
    const { general, "teacher-only": hidden, "student-only": own, labelled: n } = world;
    const decisive = general + hidden + own, taught = general + hidden;
    const slope = Math.sqrt(2 / (Math.PI * decisive)); // of the label on every factor
    const explained = slope ** 2 * taught; // of the label's variance, by the teacher's input
    const spread = (1 - explained) / Math.max(1, n - WIDTH - 1); // variance of each of the teacher's coefficients
    const focused = kind === "focused", distilled = kind !== "no-kd";
    const repeats = focused ? 0 : Math.min(1, WIDTH / n); // share of the labels' noise that the teacher repeats
    // Weights of a labelled and an unlabelled pair, and the labels' share of the first.
    const u = distilled ? world.unlabelled : 0, soft = distilled ? 1 / (n + u) : 0, weight = 1 / n + soft;
    const total = n * weight + u * soft, label = 1 / n / weight, first = (n * weight) / total;
    const shares = [first, 1 - first], pairs = [n * weight ** 2, u * soft ** 2];
    const blend = (values) => sum(values.map((value, i) => shares[i] * value));
    // Each pair of numbers: on labelled and on unlabelled pairs.
    const targets = (mask) => [slope * (label + (1 - label) * mask), slope * mask];
    const seen = targets(1), unseen = targets(focused ? 0 : 1);
    const mine = [slope * (label + (1 - label) * repeats), 0];
    const error = focused ? [spread * (1 - label) ** 2, spread] : [0, spread];
    const unseenError = focused ? [0, 0] : [0, spread];
    const left = 1 - explained - slope ** 2 * own;
    const rest = [
      (focused ? label ** 2 : repeats + label ** 2 * (1 - repeats)) * left,
      focused ? 0 : (WIDTH - taught) * spread,
    ];
    const noise = [0, 1].map((i) =>
      rest[i] + hidden * (unseen[i] ** 2 + unseenError[i])
      + own * (mine[i] - blend(mine)) ** 2 + general * (seen[i] - blend(seen)) ** 2);
    const variance = sum(noise.map((value, i) => pairs[i] * value)) / total ** 2
      / Math.max(1e-3, 1 - ((WIDTH + 1) * sum(pairs)) / total ** 2);
    const signal = blend(seen), said = blend(mine), errors = sum(error.map((value, i) => shares[i] ** 2 * value));
    const along = general * signal + own * said;
    const length = general * (signal ** 2 + errors) + own * said ** 2 + WIDTH * variance;
    return 100 * (0.5 + Math.asin(Math.min(1, along / Math.sqrt(length * decisive))) / Math.PI);
  }

  /** Area that two circles have in common. */
  function lens(one, two, distance) {
    if (distance >= one + two) return 0;
    if (distance <= Math.abs(one - two)) return Math.PI * Math.min(one, two) ** 2;
    const segment = (a, b) => {
      const cosine = (distance ** 2 + a ** 2 - b ** 2) / (2 * distance * a);
      const angle = Math.acos(Math.max(-1, Math.min(1, cosine)));
      return a ** 2 * (angle - Math.sin(angle) * Math.cos(angle));
    };
    return segment(one, two) + segment(two, one);
  }

  /** The modality Venn diagram, areas to scale, the teacher on the left. */
  function venn({ general, "teacher-only": hidden, "student-only": own }) {
    const area = 15000 / (general + hidden + own);
    const [teacher, student] = [hidden, own].map((only) => Math.sqrt((area * (general + only)) / Math.PI));
    let near = Math.abs(teacher - student), far = teacher + student;
    for (let step = 0; step < 60; step++) {
      const middle = (near + far) / 2;
      if (lens(teacher, student, middle) > area * general) near = middle; else far = middle;
    }
    const distance = general ? near : 1.1 * (teacher + student);
    const shift = 170 - (Math.min(-teacher, distance - student) + Math.max(teacher, distance + student)) / 2;
    const circles = [["#0072b2", shift, teacher], ["#d55e00", shift + distance, student]].filter((circle) => circle[2]);
    const name = '<rect x="0" y="3" width="11" height="11" fill="#0072b2"/><text x="16" y="14">teacher</text>'
      + '<rect x="329" y="3" width="11" height="11" fill="#d55e00"/><text x="324" y="14" text-anchor="end">student</text>';
    return name + circles.map(([colour, x, radius]) =>
      `<circle cx="${x}" cy="88" r="${radius}" fill="${colour}" fill-opacity=".25" stroke="${colour}" stroke-width="2"/>`,
    ).join("");
  }

  const signed = (number) => `${number < -0.05 ? "\u2212" : "+"}${Math.abs(number).toFixed(1)}`;

  /** A bar for each student, from chance (50 %) to 100 %. */
  function bars(found) {
    return STUDENTS.map(({ kind, name, colour }, row) => {
      const y = 40 * row, gain = row ? ` (${signed(found[kind] - found["no-kd"])})` : "";
      return `<text x="0" y="${y + 14}">${name}</text>`
        + `<text x="340" y="${y + 14}" text-anchor="end">${found[kind].toFixed(1)} %${gain}</text>`
        + `<rect x="0" y="${y + 20}" width="340" height="9" fill="currentColor" fill-opacity=".1"/>`
        + `<rect x="0" y="${y + 20}" width="${6.8 * Math.max(0, found[kind] - 50)}" height="9" fill="${colour}"/>`;
    }).join("");
  }

  function reading(found, hidden) {
    const teacher = found.plain - found["no-kd"], focus = found.focused - found.plain;
    const more = focus < -0.05 ? `. The focus costs ${Math.abs(focus).toFixed(1)}` : `, and ${signed(focus)} more from the focused one`;
    const told = `The model predicts ${signed(teacher)} points from the plain teacher${more}.`;
    if (teacher < -0.05) return `${told} This teacher costs accuracy: to the student, what it says is noise.`;
    if (focus < -0.05) return `${told} Removing channels loses more here than it saves.`;
    if (focus >= 1) return `${told} Pairs are few: removing ${hidden ? "what cannot cross" : "channels that only carry noise"} pays.`;
    if (teacher < 0.5) return `${told} Little of what this teacher knows can cross.`;
    return `${told} The student averages out what it cannot see by itself.`;
  }

  function show() {
    const world = {};
    for (const { name, values } of SLIDERS) {
      const slider = page.querySelector(`input[name="${name}"]`);
      world[name] = values[slider.value];
      slider.setAttribute("aria-valuetext", world[name]);
      slider.nextElementSibling.textContent = world[name];
    }
    const { general, "teacher-only": hidden, "student-only": own } = world, all = general + hidden + own;
    const share = (part, whole) => (whole ? (part / whole).toFixed(2) : "0.00");
    const text = (name, words) => { page.querySelector(`.${name}`).textContent = words; };
    page.querySelector(".result").hidden = !all;
    text("reading", all ? "" : "No factor decides the label: move one of the first three sliders.");
    if (!all) return;
    const found = Object.fromEntries(STUDENTS.map(({ kind }) => [kind, accuracy(kind, world)]));
    page.dataset.accuracies = JSON.stringify(found);
    page.querySelector(".venn").innerHTML = venn(world);
    page.querySelector(".bars").innerHTML = bars(found);
    text("parts", `${hidden} teacher-only, ${general} general, ${own} student-only; \u03b1 = ${share(hidden, hidden + general)}, `
      + `\u03b2 = ${share(own, own + general)}, \u03b3 = ${share(general, all)}`);
    text("reading", reading(found, hidden));
  }

  page.innerHTML = `
    <style>
      #what-crosses { display: flex; flex-wrap: wrap; gap: 1rem 2rem; }
      #what-crosses > * { flex: 1 1 15rem; min-width: 0; }
      #what-crosses label { display: block; margin-bottom: .5rem; }
      #what-crosses input { width: calc(100% - 3.5rem); vertical-align: middle; accent-color: #0072b2; }
      #what-crosses output { display: inline-block; width: 3rem; text-align: right; }
      #what-crosses svg { display: block; width: 100%; max-width: 24rem; fill: currentColor; font-size: 14px; }
      #what-crosses p { margin: .3rem 0 .8rem; }
    </style>
    <form>${SLIDERS.map(({ name, label, values, start }) =>
      `<label>${label}<br><input type="range" name="${name}" min="0" max="${values.length - 1}"`
      + ` value="${values.indexOf(start)}"><output></output></label>`).join("")}
      <p class="reading" aria-live="polite"></p>
    </form>
    <div class="result">
      <svg class="venn" viewBox="0 0 340 176" role="img" aria-label="Venn diagram of the factors of teacher (left) and student (right)"></svg>
      <p class="parts"></p>
      <svg class="bars" viewBox="0 0 340 115" role="img" aria-label="Predicted accuracies of three students"></svg>
      <p><em>Model, not measurement: test accuracy by the formula; in brackets, points over labels alone.</em></p>
    </div>`;
  page.addEventListener("input", show);
  show();
})();
