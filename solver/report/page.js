"use strict";
(() => {
  const data = JSON.parse(document.getElementById("map-data").textContent);
  const nodes = document.getElementById("nodes");
  if (!nodes) return;
  const palette = ["#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#ee8866", "#44bb99", "#bbcc33", "#99ddff"];
  const [GPU, REPLICA, STAGE, ATP, ADP, MTP, EP, SEQ] = [0, 1, 2, 3, 4, 5, 6, 7];
  const byGpu = new Map(data.rows.map((row) => [row[GPU], row]));
  const cells = new Map();
  const last = Math.max(...data.rows.map((row) => row[GPU]));
  const page = document.createDocumentFragment();
  for (let node = 0; node * data.perNode <= last; node++) {
    const box = document.createElement("div");
    box.className = "node";
    box.style.gridTemplateColumns = `repeat(${Math.min(data.perNode, 8)}, 14px)`;
    const name = document.createElement("b");
    name.textContent = node;
    box.append(name);
    let used = false;
    for (let local = 0; local < data.perNode; local++) {
      const cell = document.createElement("div");
      const gpu = node * data.perNode + local;
      cell.className = "gpu";
      cell.dataset.gpu = gpu;
      box.append(cell);
      cells.set(gpu, cell);
      used = used || byGpu.has(gpu);
    }
    if (used) page.append(box);
  }
  nodes.append(page);

  const ramp = (share) => `hsl(${Math.round(210 - 200 * Math.min(1, Math.max(0, share)))} 65% 52%)`;
  const most = Math.max(1.0001, ...data.loads);
  const least = Math.min(1, ...data.loads);
  const shade = {
    stage: (row) => palette[row[STAGE] % palette.length],
    ep: (row) => `hsl(${(row[EP] * 137.5) % 360} 60% 55%)`,
    replica: (row) => `hsl(${(row[REPLICA] * 137.5) % 360} 55% 52%)`,
    memory: (row) => ramp(data.stages[row[STAGE]][2]),
    load: (row) => (data.loads.length ? ramp((data.loads[row[EP]] - least) / (most - least)) : "#888888"),
  };
  const legend = document.getElementById("legend");
  const entry = (colour, text) => {
    const item = document.createElement("span");
    const mark = document.createElement("i");
    mark.style.background = colour;
    item.append(mark, text);
    legend.append(item);
  };
  const paint = () => {
    const mode = document.getElementById("colour").value;
    for (const row of data.rows) cells.get(row[GPU]).style.background = shade[mode](row);
    legend.replaceChildren();
    if (mode === "stage") data.stages.forEach((s, i) => entry(palette[i % palette.length], `stage ${i}: layers ${s[0]}-${s[0] + s[1] - 1}`));
    if (mode === "memory") [0, 0.5, 1].forEach((share) => entry(ramp(share), `${share * 100} % of the usable memory`));
    if (mode === "load" && data.loads.length) [least, (least + most) / 2, most].forEach((load) => entry(ramp((load - least) / (most - least)), `${load.toFixed(3)} x the mean`));
    if (data.rows.length < data.gpus) entry("transparent", `first ${data.rows.length} of ${data.gpus} GPUs`);
  };
  document.getElementById("colour").addEventListener("change", paint);

  const ranges = (numbers) => {
    const parts = [];
    for (let i = 0; i < numbers.length; ) {
      let j = i;
      while (j + 1 < numbers.length && numbers[j + 1] === numbers[j] + 1) j++;
      parts.push(i === j ? `${numbers[i]}` : `${numbers[i]}-${numbers[j]}`);
      i = j + 1;
    }
    return parts.join(" ");
  };
  const held = (row) => {
    const [first, count] = data.stages[row[STAGE]];
    const texts = new Map();
    data.moeLayers.forEach((layer, i) => {
      if (layer < first || layer >= first + count) return;
      const text = ranges(data.maps[data.mapOfLayer[i]][row[EP]]);
      texts.set(text, [...(texts.get(text) || []), layer]);
    });
    return [...texts].slice(0, 4).map(([text, layers]) => `layers ${ranges(layers)}: experts ${text}`).join("\n") + (texts.size > 4 ? `\n... ${texts.size - 4} more maps` : "");
  };
  const describe = (row) => {
    const [first, count] = data.stages[row[STAGE]];
    const lines = [
      `GPU ${row[GPU]} = node ${Math.floor(row[GPU] / data.perNode)}, local ${row[GPU] % data.perNode}`,
      `replica ${row[REPLICA]}, stage ${row[STAGE]}, layers ${first}-${first + count - 1}`,
      `attention TP ${row[ATP]}, DP ${row[ADP]}`,
    ];
    if (data.maps.length) lines.push(`experts TP ${row[MTP]}, EP ${row[EP]}`, held(row));
    lines.push(`memory ${(data.stages[row[STAGE]][2] * 100).toFixed(1)} %`);
    if (data.loads.length) lines.push(`expert load ${data.loads[row[EP]].toFixed(3)} x the mean`);
    lines.push(`sequences ${data.sequences[row[SEQ]] || "none"}`);
    return lines.join("\n");
  };
  const tip = document.getElementById("tip");
  nodes.addEventListener("mousemove", (event) => {
    const row = byGpu.get(Number(event.target.dataset.gpu));
    if (!row) { tip.style.display = "none"; return; }
    tip.textContent = describe(row);
    tip.style.display = "block";
    tip.style.left = `${Math.min(event.clientX + 14, innerWidth - tip.offsetWidth - 8)}px`;
    tip.style.top = `${Math.min(event.clientY + 14, innerHeight - tip.offsetHeight - 8)}px`;
  });
  nodes.addEventListener("mouseleave", () => { tip.style.display = "none"; });

  const inText = (text, number) => text.split(/[ |]+/).some((part) => {
    const [a, b] = part.split("-").map(Number);
    return part !== "" && number >= a && number <= (b === undefined ? a : b);
  });
  const matcher = (query) => {
    const layered = query.match(/^(?:expert\s*)?(\d+)\s*:\s*(\d+)$/i);
    const plain = query.match(/^(expert|e|sequence|seq|s|gpu|g|replica|stage)\s*(\d+)$/i);
    if (layered) {
      const at = data.moeLayers.indexOf(Number(layered[1]));
      const expert = Number(layered[2]);
      return (row) => {
        const [first, count] = data.stages[row[STAGE]];
        return at >= 0 && Number(layered[1]) >= first && Number(layered[1]) < first + count && data.maps[data.mapOfLayer[at]][row[EP]].includes(expert);
      };
    }
    if (!plain) return null;
    const number = Number(plain[2]);
    const word = plain[1][0].toLowerCase() === "s" && /^st/i.test(plain[1]) ? "stage" : plain[1][0].toLowerCase();
    if (word === "e") {
      const hits = data.maps.map((map) => map.map((slots) => slots.includes(number)));
      return (row) => {
        const [first, count] = data.stages[row[STAGE]];
        return data.moeLayers.some((layer, i) => layer >= first && layer < first + count && hits[data.mapOfLayer[i]][row[EP]]);
      };
    }
    if (word === "s") return (row) => inText(data.sequences[row[SEQ]], number);
    if (word === "g") return (row) => row[GPU] === number;
    if (word === "stage") return (row) => row[STAGE] === number;
    return (row) => row[REPLICA] === number;
  };
  document.getElementById("find").addEventListener("input", (event) => {
    const query = event.target.value.trim();
    const found = document.getElementById("found");
    const test = query ? matcher(query) : null;
    let count = 0;
    let first = null;
    for (const row of data.rows) {
      const hit = Boolean(test && test(row));
      cells.get(row[GPU]).classList.toggle("hit", hit);
      count += hit;
      if (hit && !first) first = row;
    }
    nodes.classList.toggle("dim", Boolean(test));
    found.textContent = !query ? "" : !test ? "write expert 17, 3:17, sequence 5, gpu 12, replica 1 or stage 0" : count ? `${count} GPUs; first: GPU ${first[GPU]} on node ${Math.floor(first[GPU] / data.perNode)}` : "nowhere";
  });
  paint();
})();
