"use strict";
(() => {
  const data = JSON.parse(document.getElementById("map-data").textContent);
  const nodes = document.getElementById("nodes");
  if (!nodes) return;
  const palette = ["#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#ee8866", "#44bb99", "#bbcc33", "#99ddff"];
  const [GPU, REPLICA, STAGE, ATP, ADP, MTP, EP, SEQ] = [0, 1, 2, 3, 4, 5, 6, 7];
  const rows = data.replicas.flatMap((begin, replica) =>
    data.instance.map(([offset, stage, atp, adp, mtp, ep]) => [begin + offset, replica, stage, atp, adp, mtp, ep, replica * data.attnDp + adp]));
  const byGpu = new Map(rows.map((row) => [row[GPU], row]));
  const nodeOf = (gpu) => Math.floor(gpu / data.perNode);
  const used = [...new Set(rows.map((row) => nodeOf(row[GPU])))].sort((a, b) => a - b);
  const cells = new Map();
  const drawNodes = (numbers) => {
    const page = document.createDocumentFragment();
    cells.clear();
    for (const node of numbers) {
      const box = document.createElement("div");
      box.className = "node";
      box.style.gridTemplateColumns = `repeat(${Math.min(data.perNode, 8)}, 14px)`;
      const name = document.createElement("b");
      name.textContent = node;
      box.append(name);
      for (let local = 0; local < data.perNode; local++) {
        const cell = document.createElement("div");
        const gpu = node * data.perNode + local;
        cell.className = "gpu";
        cell.dataset.gpu = gpu;
        box.append(cell);
        cells.set(gpu, cell);
      }
      page.append(box);
    }
    nodes.replaceChildren(page);
  };

  // Many nodes: tiles of whole racks (scale-up domains) or of equally many nodes first, the nodes of one on demand.
  const groups = document.getElementById("groups");
  const opened = document.getElementById("opened");
  const tiles = [];
  const tileOf = new Map();
  const perRack = Math.max(1, Math.round(data.perDomain / data.perNode));
  const perTile = perRack * Math.max(1, Math.ceil(used.length / perRack / data.mostTiles));
  const open = (tile) => {
    tiles.forEach((other) => other.button.classList.toggle("open", other === tile));
    opened.textContent = `${tile.name}; click another one to see its nodes`;
    drawNodes(tile.nodes);
    paint();
    search();
  };
  if (used.length > data.mostNodes) {
    groups.hidden = false;
    for (const row of rows) {
      const at = Math.floor(nodeOf(row[GPU]) / perTile);
      if (!tileOf.has(at)) tileOf.set(at, { at, rows: [], button: document.createElement("button") });
      tileOf.get(at).rows.push(row);
    }
    tiles.push(...[...tileOf.values()].sort((a, b) => a.at - b.at));
    for (const tile of tiles) {
      tile.nodes = [...new Set(tile.rows.map((row) => nodeOf(row[GPU])))].sort((a, b) => a - b);
      const between = (column) => {
        const values = tile.rows.map((row) => row[column]);
        const least = values.reduce((a, b) => Math.min(a, b));
        const most = values.reduce((a, b) => Math.max(a, b));
        return least === most ? `${least}` : `${least}-${most}`;
      };
      const nodesText = tile.nodes.length > 1 ? `nodes ${tile.nodes[0]}-${tile.nodes[tile.nodes.length - 1]}` : `node ${tile.nodes[0]}`;
      tile.name = `${nodesText}: ${tile.rows.length} GPUs, replicas ${between(REPLICA)}, stages ${between(STAGE)}`;
      tile.button.className = "group";
      tile.button.type = "button";
      tile.button.title = tile.name;
      tile.button.setAttribute("aria-label", tile.name);
      tile.button.addEventListener("click", () => open(tile));
      groups.append(tile.button);
    }
  } else drawNodes(used);

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
    cells.forEach((cell, gpu) => { if (byGpu.has(gpu)) cell.style.background = shade[mode](byGpu.get(gpu)); });
    // A tile shows its fullest or busiest GPU, or else its first one.
    const weight = { memory: (row) => data.stages[row[STAGE]][2], load: (row) => data.loads[row[EP]] || 0 }[mode];
    for (const tile of tiles) {
      const shown = weight ? tile.rows.reduce((a, b) => (weight(b) > weight(a) ? b : a)) : tile.rows[0];
      tile.button.style.background = shade[mode](shown);
    }
    legend.replaceChildren();
    if (mode === "stage") data.stages.forEach((s, i) => entry(palette[i % palette.length], `stage ${i}: layers ${s[0]}-${s[0] + s[1] - 1}`));
    if (mode === "memory") [0, 0.5, 1].forEach((share) => entry(ramp(share), `${share * 100} % of the usable memory`));
    if (mode === "load" && data.loads.length) [least, (least + most) / 2, most].forEach((load) => entry(ramp((load - least) / (most - least)), `${load.toFixed(3)} x the mean`));
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
  const map = document.getElementById("map");
  const search = () => {
    const query = document.getElementById("find").value.trim();
    const found = document.getElementById("found");
    const test = query ? matcher(query) : null;
    const hits = new Set(test ? rows.filter(test).map((row) => row[GPU]) : []);
    let first = Infinity;
    for (const gpu of hits) first = Math.min(first, gpu);
    cells.forEach((cell, gpu) => cell.classList.toggle("hit", hits.has(gpu)));
    for (const tile of tiles) tile.button.classList.toggle("hit", tile.rows.some((row) => hits.has(row[GPU])));
    map.classList.toggle("dim", Boolean(test));
    found.textContent = !query ? "" : !test ? "write expert 17, 3:17, sequence 5, gpu 12, replica 1 or stage 0" : hits.size ? `${hits.size} GPUs; first: GPU ${first} on node ${nodeOf(first)}` : "nowhere";
  };
  document.getElementById("find").addEventListener("input", search);
  if (tiles.length) open(tiles[0]);
  else paint();
})();
